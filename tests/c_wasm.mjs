// Run the WebAssembly build of the C library: node c_wasm.mjs FOLDER, see test_c_wasm.py.
import { readFileSync, writeFileSync } from "node:fs";

const folder = process.argv[2];
const job = JSON.parse(readFileSync(`${folder}/job.json`));
const module = new WebAssembly.Module(readFileSync(job.wasm));
if (WebAssembly.Module.imports(module).length) throw new Error("the module has imports");
const eomt = new WebAssembly.Instance(module).exports;
eomt._initialize();

function memory(kind, address, length) {
  return new kind(eomt.memory.buffer, address, length);
}

// Copy bytes to the memory of the module. Returns their address.
function given(bytes) {
  const address = eomt.eomt_alloc(bytes.length);
  if (!address) throw new Error("no memory");
  memory(Uint8Array, address, bytes.length).set(bytes);
  return address;
}

function text(address) {
  const bytes = memory(Uint8Array, address);
  return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
}

function check(code) {
  if (code) throw new Error(`${code}: ${text(eomt.eomt_error_message())}`);
}

// Call a function whose last argument is the address of a new object. Returns the object.
function make(call, ...args) {
  const place = eomt.eomt_alloc(4);
  check(call(...args, place));
  const object = memory(Uint32Array, place, 1)[0];
  eomt.eomt_free(place);
  return object;
}

const json = readFileSync(`${folder}/spec.json`);
const model = make(eomt.eomt_model_read, given(json), json.length);
const geometry = make(eomt.eomt_geometry_plan, model, job.height, job.width);
const pixels = given(readFileSync(`${folder}/image.bin`));
const size = eomt.eomt_geometry_input_bytes(geometry);
const inputs = eomt.eomt_alloc(size);
const start = performance.now();
check(eomt.eomt_preprocess(geometry, pixels, job.width * 4, 2, job.pillow, inputs, size));
const between = performance.now();
writeFileSync(`${folder}/inputs.bin`, memory(Uint8Array, inputs, size));

const classes = readFileSync(`${folder}/classes.bin`), masks = readFileSync(`${folder}/masks.bin`);
const logits = [given(classes), classes.length / 4, given(masks), masks.length / 4];
const again = performance.now();
const result = make(eomt.eomt_postprocess, model, geometry, ...logits, ...job.thresholds);
const end = performance.now();
const bytes = eomt.eomt_result_label_bytes(result) * job.height * job.width;
writeFileSync(`${folder}/labels.bin`, memory(Uint8Array, eomt.eomt_result_labels(result), bytes));
const segments = [];
for (let i = 0; i < eomt.eomt_result_count(result); i++) {
  const runs = 2 * eomt.eomt_result_run_count(result, i);
  segments.push({
    class: eomt.eomt_result_class(result, i),
    name: text(eomt.eomt_model_class_name(model, eomt.eomt_result_class(result, i))),
    score: eomt.eomt_result_score(result, i),
    area: eomt.eomt_result_area(result, i) >>> 0,
    box: [...memory(Int32Array, eomt.eomt_result_box(result, i), 4)],
    runs: [...memory(Uint32Array, eomt.eomt_result_runs(result, i), runs)],
  });
}
const times = { preprocess: between - start, postprocess: end - again };
writeFileSync(`${folder}/result.json`, JSON.stringify({ segments, times }));
