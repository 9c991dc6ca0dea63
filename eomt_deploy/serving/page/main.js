// The page: choose an image, show its segments, repeat the post-processing with other thresholds.
import { call, Refused, useToken } from "./api.js";
import { colorsOf, draw, numbersOf } from "./draw.js";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const NAMES = { score: "Minimum score", mask: "Minimum mask probability", overlap: "Minimum visible share" };
const state = { models: [], blob: null, name: "image", image: null, key: null, view: null, sending: 0 };

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function complain(error) {
  if (error instanceof Refused && error.status === 401) {
    $("login").hidden = false;
    $("token").focus();
  }
  say(error.message, true);
}

const model = () => state.models.find((entry) => entry.name === $("model").value);

async function loadModels() {
  try {
    state.models = await (await call("/models")).json();
  } catch (error) {
    return complain(error);
  }
  $("login").hidden = true;
  $("model").replaceChildren(...state.models.map((entry) => new Option(entry.name, entry.name)));
  showModel();
  say("Choose an image.");
}

function showModel() {
  const { task, classes, backend, precision, thresholds } = model();
  $("about").textContent = `${task}, ${classes.length} classes, ${precision}, ${backend}`;
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

function query(extra) {
  const values = new URLSearchParams({ model: model().name, ...extra });
  for (const input of $("thresholds").querySelectorAll("input")) values.set(`${input.name}_threshold`, input.value);
  return `/segment?${values}`;
}

/** Send the image, or only its key if the server has kept the outputs of the network. */
async function send(extra, again) {
  if (again && state.key) {
    try {
      return await call(query({ ...extra, image: state.key }), { method: "POST" });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  const { blob } = state, name = model().name;
  const response = await call(query({ ...extra, keep: true }), { method: "POST", body: blob });
  // Another image or model may have been chosen meanwhile.
  if (state.blob === blob && model().name === name) state.key = response.headers.get("x-image");
  return response;
}

async function segment(again) {
  const number = ++state.sending, began = performance.now();
  say(again ? "Computing the segments again …" : "Segmenting …");
  try {
    const response = await send({ format: "rle" }, again);
    const result = await response.json();
    if (number !== state.sending) return; // a newer request is on its way
    showTimes(response.headers.get("server-timing"), performance.now() - began);
    show(result);
  } catch (error) {
    if (number === state.sending) complain(error);
  }
}

function show(result) {
  const colors = colorsOf(result, model().classes);
  state.view = { result, colors, numbers: numbersOf(result), active: null };
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

function showTimes(header, total) {
  const rows = (header ?? "").split(", ").filter(Boolean).map((part) => part.split(";dur="));
  rows.push(["all, with transfer", total.toFixed(1)]);
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
    // The server applies the EXIF orientation as the browser does.
    state.image = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    return say("This file is not an image that the browser can show.", true);
  }
  Object.assign(state, { blob, name: name.replace(/\.[^.]*$/, "") || "image", key: null, view: null });
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
  $("video").srcObject = stream;
  await $("video").play();
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
  Object.assign(state, { blob: null, view: null, key: null, sending: state.sending + 1 });
  $("picture").hidden = $("actions").hidden = $("times").hidden = true;
  $("drop").hidden = false;
  $("legend").replaceChildren();
  $("count").textContent = "";
  say("Choose an image.");
  $("choose").focus();
}

$("model").addEventListener("change", () => {
  showModel();
  state.key = null;
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
    download(await (await send({ format: "coco" }, true)).blob(), `${state.name}-coco.json`);
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
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value);
  loadModels();
});
loadModels();
