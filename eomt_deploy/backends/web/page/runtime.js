// Opens the model with ONNX Runtime Web: on the GPU (WebGPU) or on the CPU (WebAssembly).

const MAX_THREADS = 8;

/** Why the GPU is not used; empty if it can be used. */
async function whyNoGpu(site) {
  if (!site.runtimes.webgpu) return "this site was built without it";
  // WebGPU has no kernels for quantised layers; each of them would be copied to the CPU and back.
  if (site.spec.precision === "int8") return "it has no INT8";
  const adapter = await globalThis.navigator?.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return "this browser offers no GPU";
  if (site.spec.precision === "fp16" && !adapter.features.has("shader-f16")) return "this GPU has no FP16";
  return "";
}

/**
 * Open the model: {ort, session, backend}; backend is a text for people.
 *
 * wanted: "webgpu", "wasm" or "" for the best that works; read(path) gives the bytes of a file of the
 * site, and link(path) its address; threads: number of CPU threads.
 */
export async function openModel(site, { wanted, threads, read, link }) {
  const reason = wanted === "wasm" ? "not requested" : await whyNoGpu(site);
  if (wanted === "webgpu" && reason) throw new Error(`WebGPU cannot be used: ${reason}.`);
  if (!reason) {
    try {
      return { ...await open(site, "webgpu", { threads: 1, read, link }), backend: "WebGPU" };
    } catch (error) {
      if (wanted === "webgpu") throw error;
      const found = await open(site, "wasm", { threads, read, link });
      return { ...found, backend: `${cpu(threads)}; WebGPU failed: ${error.message}` };
    }
  }
  const found = await open(site, "wasm", { threads, read, link });
  return { ...found, backend: wanted ? cpu(threads) : `${cpu(threads)}; no WebGPU: ${reason}` };
}

const cpu = (threads) => `WebAssembly, ${threads} CPU ${threads === 1 ? "thread" : "threads"}`;

async function open(site, provider, { threads, read, link }) {
  const files = site.runtimes[provider];
  const { model, sides } = site.model;
  // All at once: a server answers some files while others still arrive.
  const [ort, wasmBinary, graph, ...data] = await Promise.all([
    import(link(files.library)), ...[files.wasm, model, ...sides].map(read),
  ]);
  Object.assign(ort.env.wasm, { numThreads: threads, wasmPaths: { mjs: link(files.loader) }, wasmBinary });
  ort.env.logLevel = "error";
  const externalData = sides.map((path, i) => ({ path: path.slice(path.lastIndexOf("/") + 1), data: data[i] }));
  const session = await ort.InferenceSession.create(graph, { executionProviders: [provider], externalData });
  try {
    await warmUp(ort, session, site.spec);
  } catch (error) {
    await session.release();
    throw error;
  }
  return { ort, session };
}

/** The first run prepares the kernels; it also shows whether the network runs at all. */
async function warmUp(ort, session, { batch, image_size: [height, width] }) {
  const dims = [batch || 1, height, width, 3];
  const images = new Uint8Array(dims.reduce((product, side) => product * side));
  await session.run({ images: new ort.Tensor("uint8", images, dims) });
}

/** Threads of WebAssembly need shared memory, which browsers give only to isolated pages. */
export const threadsHere = () =>
  globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;
