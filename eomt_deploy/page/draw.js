// Colours of segments, and the overlay on the canvas.
import { eachRun } from "./rle.js";

const GOLDEN = 0.6180339887;
const probe = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

function rgbOf(color) {
  probe.fillStyle = color;
  probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

/** RGB of each segment: that of its class, but each instance has a hue of its own. */
export function colorsOf({ task, segments }, classes) {
  let things = 0;
  return segments.map((segment) => {
    const known = classes.find((entry) => entry.id === segment.class_id);
    if (known && (task === "semantic" || !segment.thing)) return known.color;
    const turn = (things * GOLDEN) % 1, lightness = [0.72, 0.6, 0.84][things++ % 3];
    return rgbOf(`oklch(${lightness} 0.17 ${360 * turn})`);
  });
}

/** Number + 1 of the topmost segment of each pixel, row by row; 0 for none. */
export function numbersOf(result) {
  const [height, width] = result.size;
  const numbers = new Uint16Array(height * width);
  // The best instance is painted last, so that it is on top.
  for (let index = result.segments.length - 1; index >= 0; index--) {
    eachRun(result.segments[index].rle, (x, y, length) => {
      for (let row = y; row < y + length; row++) numbers[row * width + x] = index + 1;
    });
  }
  return numbers;
}

/** Draw the image and the segments over it. */
export function draw(canvas, image, view) {
  const { result, numbers, colors, opacity, outlines, active } = view;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (!result) return;
  const [height, width] = result.size;
  const pixels = context.getImageData(0, 0, width, height), data = pixels.data;
  const thick = Math.max(1, Math.round(Math.max(width, height) / 900));
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place++) {
      const number = numbers[place];
      if (!number) continue;
      const color = colors[number - 1], at = 4 * place;
      const share = active === null ? opacity : active === number - 1 ? 0.8 : opacity * 0.3;
      for (let c = 0; c < 3; c++) data[at + c] += (color[c] - data[at + c]) * share;
      if (!outlines) continue;
      const right = x + thick < width ? numbers[place + thick] : number;
      const below = y + thick < height ? numbers[place + thick * width] : number;
      const left = x >= thick ? numbers[place - thick] : number;
      const above = y >= thick ? numbers[place - thick * width] : number;
      // A dark line inside one region and a bright one in its neighbour: visible on every colour.
      if (right !== number || below !== number) data[at] = data[at + 1] = data[at + 2] = 20;
      else if (left !== number || above !== number) data[at] = data[at + 1] = data[at + 2] = 240;
    }
  }
  context.putImageData(pixels, 0, 0);
}
