// Keeps the files of the site for use without a network. `build` writes SITE above this line:
// {version, small, large}, the paths of small files, which are kept at once, and of large files, which
// are kept when they are used.
/* global SITE */

const scope = self.registration.scope;
const prefix = `eomt-deploy ${scope} `;
const name = prefix + SITE.version;
const addressOf = (path) => new URL(path, scope).href;
const small = SITE.small.map(addressOf);
const files = new Set([...small, ...SITE.large.map(addressOf)]);

// Threads need an isolated page. Scripts and connections of other servers are refused.
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
    + "img-src 'self' blob: data:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'",
  "X-Content-Type-Options": "nosniff",
};

/** Fetch a file; the browser's own cache is asked only whether it is still up to date. */
async function download(address) {
  const response = await fetch(address, { cache: "no-cache" });
  if (!response.ok || response.redirected) return response;
  const headers = new Headers(response.headers);
  for (const [key, value] of Object.entries(HEADERS)) headers.set(key, value);
  return new Response(response.body, { status: 200, headers });
}

async function install() {
  const cache = await caches.open(name);
  await Promise.all(small.map(async (address) => {
    const response = await download(address);
    if (!response.ok) throw new Error(`${address} cannot be loaded: ${response.status}`);
    await cache.put(address, response);
  }));
}

async function activate() {
  for (const other of await caches.keys()) {
    if (other.startsWith(prefix) && other !== name) await caches.delete(other);
  }
  await self.clients.claim();
}

async function answer(address, event) {
  const cache = await caches.open(name);
  const kept = await cache.match(address);
  if (kept) return kept;
  const response = await download(address);
  if (!response.ok) return response;
  // Without enough space, the page works, but says that it needs the network.
  const copy = response.clone();
  event.waitUntil(cache.put(address, copy).catch((error) => console.warn(`${address} is not kept: ${error}`)));
  return response;
}

self.addEventListener("install", (event) => event.waitUntil(install()));
// A new version is activated when no page of the site is open (there is no skipWaiting): a page must
// not get files of two versions.
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  url.search = url.hash = "";
  const address = url.href === scope ? addressOf("index.html") : url.href;
  if (event.request.method === "GET" && files.has(address)) event.respondWith(answer(address, event));
});
