// The static page: the results come from a worker in this browser; nothing is uploaded.
import { start } from "./common/app.js";
import { isOffline, prepare } from "./offline.js";

const waiting = new Map();
const keys = new WeakMap();
let worker = null, count = 0, progress = () => {};

function startWorker() {
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data: { id, value, error, loaded } }) => {
    if (loaded !== undefined) return progress(loaded);
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(value);
    else reject(new Error(error));
  };
  worker.onerror = (event) => {
    const error = new Error(`The segmentation stopped: ${event.message ?? "unknown error"}. Load this page again.`);
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  };
}

function ask(task, given) {
  const id = ++count;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, task, given });
  });
}

async function models(say) {
  await prepare(); // it may load the page again
  startWorker();
  const response = await fetch(new URL("../site.json", import.meta.url));
  if (!response.ok) throw new Error(`site.json cannot be loaded: the server answers ${response.status}.`);
  const site = await response.json();
  document.title = `${site.spec.name}: segmentation in your browser`;
  progress = (bytes) => say(`Loading the model: ${(bytes / 1e6).toFixed(0)} MB …`);
  say("Loading the model …");
  const wanted = new URLSearchParams(location.search).get("backend") ?? "";
  // After an error, other files may still arrive.
  const { backend } = await ask("load", { site, wanted }).finally(() => { progress = () => {}; });
  const { name, task, classes, precision, thresholds } = site.spec;
  return [{
    name, task, classes, precision, backend: `${backend}; nothing is uploaded`,
    note: isOffline(site).catch(() => false).then((offline) => offline ? "works offline" : "needs the network"),
    thresholds: task === "semantic" ? {} : thresholds,
  }];
}

/** The worker keeps the outputs of the network for the current image. */
function given({ image, thresholds }) {
  if (!keys.has(image)) keys.set(image, ++count);
  return { image, key: keys.get(image), thresholds };
}

async function segment(job) {
  const { result, numbers, times } = await ask("segment", given(job));
  return { result, numbers, times: Object.entries(times).map(([name, value]) => [name, value.toFixed(1)]) };
}

const coco = async (job) => new Blob([await ask("coco", given(job))], { type: "application/json" });

// Colours as in the file, as Python reads them.
const decoding = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
start({ models, segment, coco, decoding, total: "all, with decoding" });
