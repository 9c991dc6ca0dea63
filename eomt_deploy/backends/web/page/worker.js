// Computes beside the page, so that the page stays responsive.
import { openModel, threadsHere } from "./runtime.js";
import { cocoOf } from "./results.js";
import { Segmenter } from "./segmenter.js";

const root = new URL("../", import.meta.url);
const link = (path) => new URL(path, root).href;
let segmenter = null, current = null;

/** Send the progress of loading in bytes. */
const loaded = { done: 0 };
function count(bytes) {
  loaded.done += bytes;
  postMessage({ loaded: loaded.done });
}

async function read(path, size) {
  const response = await fetch(link(path));
  if (!response.ok) throw new Error(`${path} cannot be loaded: the server answers ${response.status}.`);
  const bytes = new Uint8Array(size), reader = response.body.getReader();
  let place = 0;
  for (let part; !(part = await reader.read()).done; place += part.value.length) {
    if (place + part.value.length > size) throw new Error(changed(path));
    bytes.set(part.value, place);
    count(part.value.length);
  }
  if (place < size) throw new Error(changed(path));
  return bytes;
}

const changed = (path) => `${path} is incomplete, or the site has changed. Load this page again.`;

const tasks = {
  async load({ site, wanted }) {
    const sizes = Object.fromEntries(site.files.map(({ path, bytes }) => [path, bytes]));
    const readFile = (path) => read(path, sizes[path]);
    const library = await readFile(site.library);
    const { ort, session, backend } = await openModel(site, { wanted, threads: threadsHere(), read: readFile, link });
    segmenter = await Segmenter.open(ort, session, library, site);
    return { backend };
  },

  async segment({ image, key, thresholds }) {
    const times = {};
    if (!segmenter.kept || current !== key) {
      const pixels = pixelsOf(image);
      current = key;
      Object.assign(times, await segmenter.read(pixels, image.height, image.width));
    }
    const began = performance.now();
    const { result, numbers } = segmenter.segment(thresholds);
    times.postprocess = performance.now() - began;
    return { result, numbers, times };
  },

  async coco(given) {
    await tasks.segment(given);
    return JSON.stringify(cocoOf(segmenter.segment(given.thresholds), segmenter.processor.classes));
  },
};

/** RGBA bytes of an image. */
function pixelsOf(image) {
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("The image is too large for this browser.");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height).data;
}

// One task after another: a session runs one image at a time.
let last = Promise.resolve();
onmessage = ({ data: { id, task, given } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, value: await tasks[task](given) });
    } catch (error) {
      postMessage({ id, error: error.message || String(error) });
    }
  });
};
