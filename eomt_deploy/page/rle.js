// COCO's compressed run lengths: column by column, outside and inside alternate.

/** Run lengths of a compressed string. */
export function runsOf(text) {
  const runs = [];
  for (let place = 0; place < text.length;) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(place++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Call paint(x, y, length) for each vertical run inside the mask. */
export function eachRun({ size: [height], counts }, paint) {
  let position = 0;
  runsOf(counts).forEach((length, index) => {
    const end = position + length;
    while (index % 2 && position < end) {
      const x = Math.floor(position / height), y = position % height;
      const part = Math.min(end - position, height - y);
      paint(x, y, part);
      position += part;
    }
    position = end;
  });
}

/** The compressed string of run lengths. */
export function stringOf(runs) {
  let text = "";
  runs.forEach((length, index) => {
    let value = index > 2 ? length - runs[index - 2] : length, more = true;
    while (more) {
      let code = value & 31;
      value >>= 5;
      more = code & 16 ? value !== -1 : value !== 0;
      if (more) code |= 32;
      text += String.fromCharCode(code + 48);
    }
  });
  return text;
}
