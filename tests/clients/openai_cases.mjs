// Run by openai-js: `node openai_cases.mjs URL KEY`. Prints one JSON object.
import OpenAI, { APIError, AuthenticationError, BadRequestError, toFile } from "openai";

const [url, key] = process.argv.slice(2);
const options = { baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 };
const client = new OpenAI(options);
const asked = { model: "gpt-image-1", prompt: "a red circle", size: "256x256", seed: 5, steps: 4 };
const isPng = (data) => Buffer.from(data, "base64").subarray(1, 4).toString() === "PNG";

async function caught(work) {
  try {
    return await work();
  } catch (error) {
    return error;
  }
}

const found = {};

const answer = await client.images.generate({ ...asked, n: 2, style: "vivid", quality: "standard" });
found.success = [answer.data.map((image) => isPng(image.b64_json)), answer.data.map((image) => image.seed)];

const models = [];
for await (const model of client.models.list()) models.push(model.id);
found.models = models;

const picture = await toFile(Buffer.from(answer.data[0].b64_json, "base64"), "a.png", { type: "image/png" });
const edited = await client.images.edit({ image: picture, prompt: "blue" });
found.edit = isPng(edited.data[0].b64_json);

found.stream = [];
for await (const event of await client.images.generate({ ...asked, stream: true, partial_images: 2 })) {
  found.stream.push([event.type, isPng(event.b64_json)]);
}

const refused = await caught(() => client.images.generate({ ...asked, size: "17x17" }));
found.error = [refused instanceof BadRequestError, refused.code, refused.param];

const stranger = new OpenAI({ ...options, apiKey: "no-such-key" });
found.wrong_key = (await caught(() => stranger.models.list())) instanceof AuthenticationError;

const broken = await caught(async () => {
  for await (const _ of await client.images.generate({ ...asked, prompt: "out of memory", stream: true }));
});
found.broken_stream = [broken instanceof APIError, broken.code];

const impatient = new OpenAI({ ...options, timeout: 500 });
found.timeout = (await caught(() => impatient.images.generate({ ...asked, steps: 200 }))).constructor.name;

const patient = new OpenAI({ ...options, maxRetries: 5 });
const several = await Promise.all([1, 2, 3, 4].map(() => patient.images.generate({ ...asked, steps: 40 })));
found.retry = several.map((one) => isPng(one.data[0].b64_json));

console.log(JSON.stringify(found));
