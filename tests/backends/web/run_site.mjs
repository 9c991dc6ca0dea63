// Runs a site in Node: node run_site.mjs SITE JOBS. JOBS is a JSON file: a list of
// {pixels, height, width, thresholds, out}: a file of RGBA bytes, its size, and where the results go.
// Writes OUT.json (result, COCO, times), OUT.masks (the masks of all segments, one after another), and
// OUT.classes and OUT.logits (the outputs of the network).
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, jobs] = process.argv.slice(2).map((path) => resolve(path));
const link = (path) => pathToFileURL(join(folder, path)).href;
const read = async (path) => new Uint8Array(readFileSync(join(folder, path)));
const { openModel, threadsHere } = await import(link("page/runtime.js"));
const { Segmenter } = await import(link("page/segmenter.js"));
const { cocoOf, maskOf } = await import(link("page/results.js"));

const site = JSON.parse(readFileSync(join(folder, "site.json")));
const { ort, session, backend } = await openModel(site, { wanted: "wasm", threads: threadsHere(), read, link });
const segmenter = await Segmenter.open(ort, session, await read(site.library), site);
for (const { pixels, height, width, thresholds, out } of JSON.parse(readFileSync(jobs))) {
  let found;
  for (const values of thresholds) {
    if (!found) found = { times: await segmenter.read(new Uint8Array(readFileSync(pixels)), height, width) };
    const began = performance.now();
    Object.assign(found, segmenter.segment(values));
    found.times.postprocess = performance.now() - began;
  }
  const { result, times } = found, coco = cocoOf(found, segmenter.processor.classes);
  writeFileSync(`${out}.json`, JSON.stringify({ backend, result, times, coco }));
  writeFileSync(`${out}.masks`, Buffer.concat(result.segments.map(({ id }) => maskOf(found, id))));
  const { classes, masks } = segmenter.kept;
  writeFileSync(`${out}.classes`, new Uint8Array(classes.buffer));
  writeFileSync(`${out}.logits`, new Uint8Array(masks.buffer));
}
segmenter.forget();
