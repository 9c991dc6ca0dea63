// The page of the server: the results come from POST /segment.
import { call, Refused, useToken } from "./api.js";
import { loadModels, say, start } from "./common/app.js";
import { numbersOf } from "./common/draw.js";

const $ = (id) => document.getElementById(id);
let kept = { blob: null, model: "", key: null };

async function models() {
  const found = await (await call("/models")).json();
  $("login").hidden = true;
  return found;
}

/** Send the image, or only its key if the server has kept the outputs of the network. */
async function send({ blob, model, thresholds, again }, format) {
  const query = (extra) => {
    const values = new URLSearchParams({ model, format, ...extra });
    for (const [name, value] of Object.entries(thresholds)) values.set(`${name}_threshold`, value);
    return `/segment?${values}`;
  };
  if (again && kept.key && kept.blob === blob && kept.model === model) {
    try {
      return await call(query({ image: kept.key }), { method: "POST" });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  const response = await call(query({ keep: true }), { method: "POST", body: blob });
  kept = { blob, model, key: response.headers.get("x-image") };
  return response;
}

async function segment(job) {
  const response = await send(job, "rle");
  const result = await response.json();
  const header = response.headers.get("server-timing") ?? "";
  const times = header.split(", ").filter(Boolean).map((part) => part.split(";dur="));
  return { result, numbers: numbersOf(result), times };
}

const coco = async (job) => (await send(job, "coco")).blob();

/** Ask for the token if the server needs one. */
function failed(error) {
  if (!(error instanceof Refused) || error.status !== 401) return false;
  $("login").hidden = false;
  $("token").focus();
  say(error.message, true);
  return true;
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value);
  loadModels();
});
$("api").hidden = false;
start({ models, segment, coco, failed, total: "all, with transfer" });
