// A model with its network and its processing; runs in a browser's worker and in Node.
import { Library, Processor } from "./library.js";
import { readResult } from "./results.js";

export class Segmenter {
  /** ort and session: ONNX Runtime Web and the open model; library: bytes of eomt.wasm. */
  static async open(ort, session, library, { spec, pillow }) {
    const processor = new Processor(await Library.load(library), JSON.stringify(spec), pillow);
    return new Segmenter(ort, session, processor);
  }

  constructor(ort, session, processor) {
    this.ort = ort;
    this.session = session;
    this.processor = processor;
    this.kept = null;
  }

  /** Run the network on an image of RGBA bytes; return the times of the stages in milliseconds. */
  async read(pixels, height, width) {
    this.forget();
    const began = performance.now();
    const { geometry, count, inputs } = this.processor.preprocess(pixels, height, width);
    const prepared = performance.now();
    try {
      this.kept = { geometry, ...await this.network(inputs, count) };
    } catch (error) {
      this.processor.forget(geometry);
      throw error;
    }
    return { preprocess: prepared - began, network: performance.now() - prepared };
  }

  /** Forget the image that was read. */
  forget() {
    if (this.kept) this.processor.forget(this.kept.geometry);
    this.kept = null;
  }

  /** The result for the image that was read; see readResult. */
  segment(thresholds) {
    const { geometry, classes, masks } = this.kept, { processor } = this;
    return processor.postprocess(geometry, classes, masks, thresholds,
      (result) => readResult(result, processor.task, processor.classes));
  }

  /** Logits of all network inputs; a few inputs at a time need less memory. */
  async network(inputs, count) {
    const { height, width, batch } = this.processor;
    const step = batch || 1, bytes = height * width * 3;
    let classes = null, masks = null;
    for (let first = 0; first < count; first += step) {
      const used = Math.min(step, count - first), images = new Uint8Array(step * bytes);
      images.set(inputs.subarray(first * bytes, (first + used) * bytes));
      const tensor = new this.ort.Tensor("uint8", images, [step, height, width, 3]);
      const found = await this.session.run({ images: tensor });
      classes = place(found.class_logits, classes, first, used, count);
      masks = place(found.mask_logits, masks, first, used, count);
    }
    return { classes, masks };
  }
}

/** Copy the outputs of some inputs to their place among those of all. */
function place(tensor, all, first, used, count) {
  const values = floats(tensor), each = values.length / tensor.dims[0];
  all ??= new Float32Array(count * each);
  all.set(values.subarray(0, used * each), first * each);
  return all;
}

function floats({ type, data }) {
  if (type === "float32") return data;
  if (type !== "float16") throw new Error(`The model has outputs of type ${type}, expected float32 or float16.`);
  // Browsers without Float16Array give the bits.
  return data instanceof Uint16Array ? Float32Array.from(data, halfOf) : Float32Array.from(data);
}

/** The number with these 16 bits. */
function halfOf(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
