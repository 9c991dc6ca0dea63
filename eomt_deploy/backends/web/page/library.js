// The C library of eomt.h as WebAssembly: description of a model, pre- and post-processing.

const ABI_VERSION = 1;
const RGBA = 2;
export const TASKS = ["semantic", "instance", "panoptic"];

/** The compiled library. Its functions throw errors with the message of the library. */
export class Library {
  static async load(bytes) {
    const { instance } = await WebAssembly.instantiate(bytes, {});
    return new Library(instance.exports);
  }

  constructor(exports) {
    this.exports = exports;
    exports._initialize?.();
    const found = exports.eomt_abi_version();
    if (found !== ABI_VERSION) {
      throw new Error(`eomt.wasm has the interface ${found}, this page needs ${ABI_VERSION}. Build the site again.`);
    }
  }

  /** A view of the memory; it is invalid after the next call, because the memory can grow. */
  view(Type, pointer, length) {
    return new Type(this.exports.memory.buffer, pointer >>> 0, length);
  }

  text(pointer) {
    const memory = this.view(Uint8Array, pointer);
    return new TextDecoder().decode(memory.slice(0, memory.indexOf(0)));
  }

  /** Call a function that returns an error code. */
  run(name, ...values) {
    if (this.exports[`eomt_${name}`](...values) < 0) {
      throw new Error(this.text(this.exports.eomt_error_message()));
    }
  }

  /** Call use(pointers) with copies of typed arrays, or with memory of as many bytes. */
  with(arrays, use) {
    const pointers = [];
    try {
      for (const given of arrays) {
        const bytes = given.byteLength ?? given;
        const pointer = this.exports.eomt_alloc(bytes);
        if (!pointer) throw new Error("This browser gives the page too little memory for this image.");
        pointers.push(pointer);
        if (given.byteLength === undefined) continue;
        this.view(Uint8Array, pointer, bytes).set(new Uint8Array(given.buffer, given.byteOffset, bytes));
      }
      return use(...pointers);
    } finally {
      for (const pointer of pointers) this.exports.eomt_free(pointer);
    }
  }

  /** Call a function whose last argument is the address of a new object; return the object. */
  create(name, ...values) {
    return this.with([4], (place) => {
      this.run(name, ...values, place);
      return this.view(Uint32Array, place, 1)[0];
    });
  }
}

/** Pre- and post-processing of one model. */
export class Processor {
  /** json: the description of the model; pillow: the release of Pillow whose bytes it gives. */
  constructor(library, json, pillow) {
    const bytes = new TextEncoder().encode(json);
    this.library = library;
    this.pillow = pillow;
    this.model = library.with([bytes], (pointer) => library.create("model_read", pointer, bytes.length));
    const value = (name) => library.exports[`eomt_model_${name}`](this.model);
    this.task = TASKS[value("task")];
    this.height = value("height");
    this.width = value("width");
    this.batch = value("batch");
    this.classes = Array.from({ length: value("classes") }, (_, id) => {
      const fact = (name) => library.exports[`eomt_model_class_${name}`](this.model, id);
      const color = fact("color");
      return {
        id, name: library.text(fact("name")), thing: fact("is_thing") === 1,
        color: [color >> 16, (color >> 8) & 255, color & 255],
      };
    });
  }

  /** Network inputs of an image from RGBA bytes: {geometry, count, inputs}. */
  preprocess(pixels, height, width) {
    const { library } = this;
    const geometry = library.create("geometry_plan", this.model, height, width);
    try {
      const count = library.exports.eomt_geometry_inputs(geometry);
      const bytes = library.exports.eomt_geometry_input_bytes(geometry) >>> 0;
      const inputs = library.with([pixels, bytes], (from, to) => {
        library.run("preprocess", geometry, from, 4 * width, RGBA, this.pillow, to, bytes);
        return library.view(Uint8Array, to, bytes).slice();
      });
      return { geometry, count, inputs };
    } catch (error) {
      this.forget(geometry);
      throw error;
    }
  }

  /** Free the geometry of an image. */
  forget(geometry) {
    this.library.exports.eomt_geometry_free(geometry);
  }

  /** The segmentation of an image; read(result) copies what is needed of it. */
  postprocess(geometry, classes, masks, { score = -1, mask = -1, overlap = -1 }, read) {
    const { library } = this;
    const result = library.with([classes, masks], (first, second) => library.create(
      "postprocess", this.model, geometry, first, classes.length, second, masks.length,
      score, mask, overlap,
    ));
    try {
      return read(new Result(library, result));
    } finally {
      library.exports.eomt_result_free(result);
    }
  }
}

/** Getters of a result. Arrays are copies. */
class Result {
  constructor(library, result) {
    this.library = library;
    this.get = (name, ...values) => library.exports[`eomt_result_${name}`](result, ...values);
    this.size = [this.get("height"), this.get("width")];
    this.count = this.get("count");
  }

  /** Class ids or numbers of segments [H, W]; null for instances. */
  labels() {
    const bytes = this.get("label_bytes"), length = this.size[0] * this.size[1];
    if (!bytes) return null;
    return this.library.view(bytes === 1 ? Uint8Array : Uint16Array, this.get("labels"), length).slice();
  }

  segment(index) {
    return {
      class_id: this.get("class", index), score: this.get("score", index),
      area: this.get("area", index) >>> 0,
      box: [...this.library.view(Int32Array, this.get("box", index), 4)],
    };
  }

  /** Start and end of each run of pixels of an instance. */
  runs(index) {
    const count = this.get("run_count", index);
    return count ? this.library.view(Uint32Array, this.get("runs", index), 2 * count).slice() : new Uint32Array();
  }
}
