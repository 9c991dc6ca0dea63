// The page: choose an image, show its segments, repeat the post-processing with other thresholds.
//
// The source of the results is the server (serving/page/main.js) or this browser
// (backends/web/page/main.js). It has
//   models(say): the models; say(text) shows the progress; the `note` of a model (optional) is a
//     promise of a text that is shown when it is known;
//   segment(job): {result, numbers, times} of an image; times are [name, text] in milliseconds;
//   coco(job): the result in COCO's format as a Blob;
//   total: name of the row with the total time;
//   decoding: options of createImageBitmap (optional);
//   failed(error): whether it shows an error itself (optional).
// A job is {blob, image, model, thresholds, again}; again: only the thresholds have changed.
import { colorsOf, draw } from "./draw.js";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const NAMES = { score: "Minimum score", mask: "Minimum mask probability", overlap: "Minimum visible share" };
const state = { models: [], blob: null, name: "image", image: null, view: null, sending: 0 };
let source = null;

export function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function complain(error) {
  if (!source.failed?.(error)) say(error.message, true);
}

const model = () => state.models.find((entry) => entry.name === $("model").value);

export async function loadModels() {
  try {
    state.models = await source.models(say);
  } catch (error) {
    return complain(error);
  }
  $("model").replaceChildren(...state.models.map((entry) => new Option(entry.name, entry.name)));
  showModel();
  if (state.blob) segment(false); // it was chosen meanwhile
  else say("Choose an image.");
}

function showModel() {
  const shown = model(), { task, classes, backend, precision, thresholds } = shown;
  const about = `${task}, ${classes.length} classes, ${precision}, ${backend}`;
  $("about").textContent = about;
  shown.note?.then((note) => { if (model() === shown) $("about").textContent = `${about}, ${note}`; });
  $("thresholds").replaceChildren(...Object.entries(thresholds)
    .filter(([name]) => task === "panoptic" || name === "score")
    .map(([name, value]) => sliderOf(name, value)));
}

function sliderOf(name, value) {
  const label = document.createElement("label");
  const shown = document.createElement("output");
  const input = document.createElement("input");
  label.className = "slider";
  label.append(`${NAMES[name]} `, shown, input);
  Object.assign(input, { type: "range", min: 0, max: 1, step: 0.01, value, name });
  shown.textContent = value.toFixed(2);
  input.addEventListener("input", () => {
    shown.textContent = Number(input.value).toFixed(2);
    if (state.blob) segmentSoon();
  });
  return label;
}

let timer = 0;
function segmentSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => segment(true), 80);
}

function jobOf(again) {
  const inputs = [...$("thresholds").querySelectorAll("input")];
  const thresholds = Object.fromEntries(inputs.map(({ name, value }) => [name, Number(value)]));
  return { blob: state.blob, image: state.image, model: model().name, thresholds, again };
}

async function segment(again) {
  if (!model()) return;
  const number = ++state.sending, began = performance.now();
  say(again ? "Computing the segments again …" : "Segmenting …");
  try {
    const found = await source.segment(jobOf(again));
    if (number !== state.sending) return; // a newer request is on its way
    showTimes(found.times, performance.now() - began);
    show(found);
  } catch (error) {
    if (number === state.sending) complain(error);
  }
}

function show({ result, numbers }) {
  const colors = colorsOf(result, model().classes);
  state.view = { result, colors, numbers, active: null };
  $("count").textContent = `(${result.segments.length})`;
  $("legend").replaceChildren(...result.segments.map(entryOf));
  redraw();
  const names = result.segments.map((segment) => segment.class_name).join(", ");
  canvas.setAttribute("aria-label", `Segments: ${names || "none"}`);
  $("actions").hidden = false;
  say(`${result.segments.length} segments, ${result.size[1]} × ${result.size[0]} pixels.`);
}

const textOf = ({ class_name, score, area }) =>
  `${class_name}${score === null ? "" : `, score ${score.toFixed(2)}`}, ${area} pixels`;

function entryOf(segment, index) {
  const button = document.createElement("button"), swatch = document.createElement("span");
  const score = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${state.view.colors[index].join(" ")})`;
  score.className = "score";
  score.textContent = segment.score === null ? "" : segment.score.toFixed(2);
  button.type = "button";
  button.setAttribute("aria-label", textOf(segment));
  button.append(swatch, segment.class_name, score);
  for (const type of ["mouseenter", "focus"]) button.addEventListener(type, () => activate(index));
  for (const type of ["mouseleave", "blur"]) button.addEventListener(type, () => activate(null));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function activate(index) {
  if (!state.view || state.view.active === index) return;
  state.view.active = index;
  redraw();
}

function redraw() {
  const opacity = Number($("opacity").value);
  draw(canvas, state.image, { ...state.view, opacity, outlines: $("outlines").checked });
}

function showTimes(times, total) {
  const rows = [...times, [source.total, total.toFixed(1)]];
  $("times").hidden = false;
  $("times").tBodies[0].replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head);
    row.insertCell().textContent = value;
    return row;
  }));
}

async function use(blob, name = "image") {
  try {
    // The EXIF orientation is applied, as Python does.
    state.image = await createImageBitmap(blob, { imageOrientation: "from-image", ...source.decoding });
  } catch {
    return say("This file is not an image that the browser can show.", true);
  }
  Object.assign(state, { blob, name: name.replace(/\.[^.]*$/, "") || "image", view: null });
  canvas.width = state.image.width;
  canvas.height = state.image.height;
  canvas.style.width = `min(100%, ${80 * canvas.width / canvas.height}vh)`; // small images grow
  $("drop").hidden = true;
  $("picture").hidden = false;
  draw(canvas, state.image, { result: null });
  closeCamera();
  await segment(false);
}

function pointed(event) {
  const box = canvas.getBoundingClientRect(), view = state.view;
  if (!view) return;
  const x = Math.floor((event.clientX - box.left) / box.width * canvas.width);
  const y = Math.floor((event.clientY - box.top) / box.height * canvas.height);
  const number = view.numbers[y * canvas.width + x];
  activate(number ? number - 1 : null);
  $("hint").hidden = !number;
  if (!number) return;
  $("hint").textContent = textOf(view.result.segments[number - 1]);
  const left = event.clientX - box.left, right = left > box.width / 2;
  $("hint").style.left = right ? "" : `${left + 14}px`;
  $("hint").style.right = right ? `${$("picture").clientWidth - left + 14}px` : "";
  $("hint").style.top = `${event.clientY - box.top + 14}px`;
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

let stream = null;
async function openCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}. Allow it in the browser; it needs https or localhost.`, true);
  }
  $("drop").hidden = true;
  $("live").hidden = false;
  $("take").disabled = true; // until there is a picture
  $("video").srcObject = stream;
  await $("video").play();
  $("take").disabled = false;
  $("take").focus();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("live").hidden = true;
  $("drop").hidden = Boolean(state.blob);
}

async function takePicture() {
  const video = $("video"), still = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  still.getContext("2d").drawImage(video, 0, 0);
  await use(await still.convertToBlob({ type: "image/png" }), "camera");
}

function another() {
  Object.assign(state, { blob: null, view: null, sending: state.sending + 1 });
  $("picture").hidden = $("actions").hidden = $("times").hidden = true;
  $("drop").hidden = false;
  $("legend").replaceChildren();
  $("count").textContent = "";
  say("Choose an image.");
  $("choose").focus();
}

$("model").addEventListener("change", () => {
  showModel();
  if (state.blob) segment(false);
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) use(file, file.name);
});
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragover");
    const file = type === "drop" && event.dataTransfer.files[0];
    if (file) use(file, file.name);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((entry) => entry.type.startsWith("image/"));
  if (file) use(file, file.name);
});
$("camera").addEventListener("click", openCamera);
$("take").addEventListener("click", takePicture);
$("stop").addEventListener("click", closeCamera);
$("again").addEventListener("click", another);
$("png").addEventListener("click", () => {
  activate(null);
  canvas.toBlob((blob) => download(blob, `${state.name}-segments.png`));
});
$("coco").addEventListener("click", async () => {
  try {
    download(await source.coco(jobOf(true)), `${state.name}-coco.json`);
  } catch (error) {
    complain(error);
  }
});
$("opacity").addEventListener("input", ({ target }) => {
  target.parentElement.querySelector("output").textContent = Number(target.value).toFixed(2);
  if (state.view) redraw();
});
$("outlines").addEventListener("change", () => state.view && redraw());
canvas.addEventListener("pointermove", pointed);
canvas.addEventListener("pointerleave", () => {
  $("hint").hidden = true;
  activate(null);
});

/** Show the models of a source, and segment images with them. */
export function start(given) {
  source = given;
  return loadModels();
}
