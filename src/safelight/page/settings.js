/** What a picture is made with: the form's state, from a model's defaults, to what the server is asked with. */

const MAX_PREVIEWS = 10;
const SEED_LIMIT = 2 ** 32;

/** Sides of the presets, as a share of the model's usual area. */
const SHAPES = [
  ["Square", 1, 1],
  ["Landscape", 3, 2],
  ["Portrait", 2, 3],
  ["Wide", 16, 9],
  ["Tall", 9, 16],
];

export const FORMATS = ["png", "jpeg", "webp"];
export const MAX_COUNT = 10;

/** @typedef {{prompt: string, width: number, height: number, steps: number, guidance: number | null,
 *   seed: string, isSeedLocked: boolean, count: number, format: string, strength: number | null,
 *   loras: {name: string, scale: number}[]}} Settings */

/** @returns {number} how much may change of a picture unless it is said: as the server has it */
export const usualStrength = (hasMask) => (hasMask ? 1 : 0.8);

/** @returns {Settings} */
export function defaultSettings(model) {
  const [width, height] = model.default_size.split("x").map(Number);
  return {
    prompt: "",
    width,
    height,
    steps: model.default_num_inference_steps,
    guidance: model.default_guidance_scale,
    seed: "",
    isSeedLocked: false,
    count: 1,
    format: "png",
    strength: null,
    loras: [],
  };
}

/** @returns {Settings} those of a job, so that it can be made again */
export function settingsOf(job, current) {
  const params = job.params;
  return {
    ...current,
    prompt: params.prompt,
    width: params.width,
    height: params.height,
    steps: params.num_inference_steps,
    guidance: params.guidance_scale,
    seed: String(params.seed),
    isSeedLocked: true,
    count: params.num_images,
    format: params.output_format,
    strength: params.source && !params.source.reference_size ? params.source.strength : current.strength,
    loras: params.loras ?? [],
  };
}

/** @returns {{name: string, width: number, height: number}[]} shapes of about the model's usual area, as it draws them */
export function sizePresets(model) {
  const [usualWidth, usualHeight] = model.default_size.split("x").map(Number);
  const fitted = (side) => {
    const multiple = model.size_multiple;
    const low = Math.ceil(model.min_size / multiple) * multiple;
    const high = Math.floor(model.max_size / multiple) * multiple;
    return Math.min(Math.max(Math.round(side / multiple) * multiple, low), high);
  };
  const presets = SHAPES.map(([name, across, along]) => {
    const unit = Math.sqrt((usualWidth * usualHeight) / (across * along));
    return { name, width: fitted(across * unit), height: fitted(along * unit) };
  });
  const isFirst = (preset) => presets.find(({ width, height }) => width === preset.width && height === preset.height) === preset;
  return presets.filter(isFirst); // small models draw few sizes
}

/** @returns {string} */
export function randomSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0] % SEED_LIMIT);
}

/**
 * @param {Settings} settings
 * @param {{image: string, mask?: string} | null} source a picture to change, as data URIs
 * @returns {Record<string, unknown>} input of /v1/predictions
 */
export function inputOf(settings, source) {
  const seed = settings.isSeedLocked ? settings.seed : randomSeed();
  return {
    prompt: settings.prompt,
    num_inference_steps: settings.steps,
    ...(settings.guidance === null ? {} : { guidance_scale: settings.guidance }),
    num_outputs: settings.count,
    output_format: settings.format,
    seed: Number.isSafeInteger(Number(seed)) ? Number(seed) : seed,
    partial_images: Math.min(MAX_PREVIEWS, Math.max(settings.steps - 1, 0)),
    ...(settings.loras.length ? { loras: settings.loras } : {}),
    ...(source ?? { width: settings.width, height: settings.height }),
    ...(source && settings.strength !== null ? { prompt_strength: settings.strength } : {}),
  };
}

/** @returns {Record<string, unknown>} a job's params as far as they are known before the server has answered */
export function expectedParams(settings, input, size) {
  return {
    prompt: settings.prompt,
    width: size?.width ?? settings.width,
    height: size?.height ?? settings.height,
    num_inference_steps: settings.steps,
    guidance_scale: settings.guidance,
    num_images: settings.count,
    output_format: settings.format,
    seed: input.seed,
    loras: settings.loras,
    source: size ? { strength: settings.strength ?? usualStrength(false) } : null,
  };
}

const STORED = "safelight.settings";

/** @returns {Partial<Settings>} what was used last in this browser, for that model; the prompt in this tab only */
export function storedSettings(model) {
  try {
    const stored = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    const prompt = sessionStorage.getItem(STORED) ?? "";
    return stored.model === model.id ? { ...stored.settings, prompt } : { prompt };
  } catch {
    return {};
  }
}

export function storeSettings(model, settings) {
  try {
    const { prompt, ...rest } = settings;
    localStorage.setItem(STORED, JSON.stringify({ model: model.id, settings: rest }));
    sessionStorage.setItem(STORED, prompt);
  } catch {
    // Storage is switched off or full: the next visit begins with the defaults.
  }
}
