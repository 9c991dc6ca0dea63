// Results as the page shows them and as COCO JSON, equal to those of Python.
import { stringOf } from "./common/rle.js";

/**
 * What the page needs of a result: {task, size, segments}, and `numbers`: number + 1 of the topmost
 * segment of each pixel, 0 for none. `runs` are the pixels of each instance.
 */
export function readResult(result, task, classes) {
  if (task === "semantic") return regionsOf(result, classes);
  const segments = Array.from({ length: result.count }, (_, id) => {
    const { class_id, ...rest } = result.segment(id);
    return { id, ...classFields(classes[class_id]), ...rest };
  });
  const found = { result: { task, size: result.size, segments }, numbers: null, runs: null };
  if (task === "panoptic") {
    found.numbers = Uint16Array.from(result.labels());
    return found;
  }
  found.numbers = new Uint16Array(result.size[0] * result.size[1]);
  found.runs = segments.map(({ id }) => result.runs(id));
  // The best instance is painted last, so that it is on top.
  for (let id = segments.length - 1; id >= 0; id--) {
    const runs = found.runs[id];
    for (let place = 0; place < runs.length; place += 2) found.numbers.fill(id + 1, runs[place], runs[place + 1]);
  }
  return found;
}

const classFields = ({ id, name, thing }) => ({ class_id: id, class_name: name, thing });

/** A semantic result has one region for each class in the image. */
function regionsOf(result, classes) {
  const [height, width] = result.size, labels = result.labels(), found = new Map();
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place++) {
      let region = found.get(labels[place]);
      if (!region) found.set(labels[place], region = { area: 0, box: [x, y, x + 1, y + 1] });
      region.area++;
      if (x < region.box[0]) region.box[0] = x;
      if (x >= region.box[2]) region.box[2] = x + 1;
      region.box[3] = y + 1;
    }
  }
  const present = [...found.keys()].sort((a, b) => a - b);
  const segments = present.map((label, id) => ({ id, ...classFields(classes[label]), score: null, ...found.get(label) }));
  const numberOf = new Uint16Array(classes.length);
  present.forEach((label, id) => (numberOf[label] = id + 1));
  return { result: { task: "semantic", size: result.size, segments }, numbers: Uint16Array.from(labels, (label) => numberOf[label]), runs: null };
}

/** 1 for the pixels inside the mask of a segment, row by row. */
export function maskOf({ numbers, runs }, id) {
  const mask = new Uint8Array(numbers.length);
  if (!runs) {
    for (let place = 0; place < mask.length; place++) mask[place] = numbers[place] === id + 1;
    return mask;
  }
  for (let place = 0; place < runs[id].length; place += 2) mask.fill(1, runs[id][place], runs[id][place + 1]);
  return mask;
}

/** COCO's run lengths of a mask, column by column; pixels outside the box are not read. */
function rleOf(mask, [height, width], [x0, y0, x1, y1]) {
  const runs = [];
  let value = 0, begin = 0;
  const turn = (position) => {
    runs.push(position - begin);
    begin = position;
    value = 1 - value;
  };
  for (let x = x0; x < x1; x++) {
    for (let y = y0; y < y1; y++) if (mask[y * width + x] !== value) turn(x * height + y);
    if (value && (y0 > 0 || y1 < height)) turn(x * height + y1);
  }
  if (begin < height * width) runs.push(height * width - begin);
  return { size: [height, width], counts: stringOf(runs) };
}

/** A result in COCO's format: the JSON that the server gives, too. */
export function cocoOf(found, classes) {
  const { size, segments } = found.result;
  return {
    images: [{ id: 1, height: size[0], width: size[1] }],
    categories: classes.map(({ id, name, thing }) => ({ id, name, isthing: Number(thing) })),
    annotations: segments.map(({ id, class_id, class_name, thing, score, area, box }) => ({
      id: id + 1, image_id: 1, category_id: class_id, category_name: class_name,
      isthing: Number(thing), iscrowd: 0, ...(score === null ? {} : { score }), area,
      bbox: [box[0], box[1], box[2] - box[0], box[3] - box[1]],
      segmentation: rleOf(maskOf(found, id), size, box),
    })),
  };
}
