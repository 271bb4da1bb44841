/** A job as others can ask for it: with curl, and in Python. */

const KEY = "SAFELIGHT_KEY"; // of the environment: a key is never copied along

/**
 * @param {any} job
 * @param {boolean} hasKey
 * @param {boolean} hasModels whether the server has several, so that it must be said which
 * @returns {string} a command that makes the same picture
 */
export function asCurl(job, hasKey, hasModels) {
  const { params } = job;
  const body = { ...(hasModels ? { model: job.model } : {}), ...members(params) };
  const lines = [`curl -s ${location.origin}/v1/images/${params.source ? "edits" : "generations"}`];
  if (hasKey) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  if (params.num_images === 1) lines.push(`-H 'Accept: image/${params.output_format}'`);
  if (params.source) {
    lines.push("-F image=@picture.png");
    if (params.source.mask_file) lines.push("-F mask=@mask.png");
    const fields = Object.entries({ ...body, ...strength(params.source) });
    lines.push(...fields.map(([name, value]) => `-F ${quoted(`${name}=${inForm(value)}`)}`));
  } else {
    lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  }
  lines.push(params.num_images === 1 ? `-o picture.${extension(params.output_format)}` : "-o pictures.json");
  return lines.join(" \\\n  ");
}

/**
 * @param {any} job
 * @param {string} model
 * @param {boolean} hasKey
 * @returns {string} a program for the openai package that makes the same picture
 */
export function asPython(job, model, hasKey) {
  const { params } = job;
  const { prompt, n, size, output_format: format, ...extra } = members(params);
  Object.assign(extra, strength(params.source));
  if (params.source && extra.loras) extra.loras = inForm(extra.loras);
  const files = params.source ? ['    image=open("picture.png", "rb"),'] : [];
  if (params.source?.mask_file) files.push('    mask=open("mask.png", "rb"),');
  return [
    "import base64",
    ...(hasKey ? ["import os"] : []),
    "import pathlib",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key=${hasKey ? `os.environ["${KEY}"]` : '"none"'})`,
    `answer = client.images.${params.source ? "edit" : "generate"}(`,
    `    model=${JSON.stringify(model)},`,
    ...files,
    `    prompt=${JSON.stringify(prompt)},`,
    `    n=${n},`,
    `    size="${size}",`,
    `    output_format="${format}",`,
    `    extra_body={${Object.entries(extra).map(([name, value]) => `"${name}": ${JSON.stringify(value)}`).join(", ")}},`,
    ")",
    "for number, picture in enumerate(answer.data):",
    `    pathlib.Path(f"picture-{number}.${extension(format)}").write_bytes(base64.b64decode(picture.b64_json))`,
    "",
  ].join("\n");
}

/** @returns {string} a file's name that says what it is of */
export function fileName(job, index) {
  const words = job.params.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.slice(0, 8).join("-").slice(0, 60)}-${seedOf(job, index)}.${extension(job.params.output_format)}`;
}

/** @returns {string} the seed that makes this one of a job's pictures */
export function seedOf(job, index) {
  return String(BigInt(job.params.seed) + BigInt(index));
}

function members(params) {
  return {
    prompt: params.prompt,
    n: params.num_images,
    size: `${params.width}x${params.height}`,
    output_format: params.output_format,
    seed: params.seed,
    num_inference_steps: params.num_inference_steps,
    ...(params.guidance_scale === null ? {} : { guidance_scale: params.guidance_scale }),
    ...(params.negative_prompt ? { negative_prompt: params.negative_prompt, true_cfg_scale: params.true_cfg_scale } : {}),
    ...(params.loras?.length ? { loras: params.loras } : {}),
  };
}

/** Of a picture that drawing begins with; a reference has none. */
const strength = (source) => (source && !source.reference_size ? { strength: source.strength } : {});

/** A form has text only. */
const inForm = (value) => (typeof value === "object" ? JSON.stringify(value) : value);

const extension = (format) => (format === "jpeg" ? "jpg" : format);

/** For a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
