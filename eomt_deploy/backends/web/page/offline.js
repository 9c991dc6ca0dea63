// The service worker keeps the site for use without a network, and adds the headers that threads need.

const TRIED = "eomt-deploy-reloaded";
const folder = new URL("../", import.meta.url);

/** Wait until the service worker serves this page; it is loaded once more for threads. */
export async function prepare() {
  const { serviceWorker } = navigator;
  if (!serviceWorker) return; // plain http on another machine, or switched off
  const ready = install(serviceWorker);
  // Right after the reload, Chromium needs a second for this; the page need not wait for it.
  if (!serviceWorker.controller && !await ready) return;
  if (!serviceWorker.controller) await controlled(serviceWorker);
  if (crossOriginIsolated) return sessionStorage.removeItem(TRIED);
  if (sessionStorage.getItem(TRIED)) return;
  sessionStorage.setItem(TRIED, "yes");
  location.reload();
  await new Promise(() => {});
}

/** Whether the service worker is active; not in some private windows, where the page works without it. */
async function install(serviceWorker) {
  try {
    const registration = await serviceWorker.register(new URL("service-worker.js", folder));
    await activated(registration);
    registration.update().catch(() => {}); // for the next visit; there may be no network
    return true;
  } catch {
    return false;
  }
}

function activated(registration) {
  const worker = registration.installing ?? registration.waiting;
  if (registration.active || !worker) return;
  return new Promise((resolve, reject) => {
    worker.addEventListener("statechange", () => {
      if (worker.state === "activated") resolve();
      if (worker.state === "redundant") reject(new Error("The service worker cannot be installed."));
    });
  });
}

/** Wait a moment; after a forced reload, no service worker serves the page. */
const controlled = (serviceWorker) => new Promise((resolve) => {
  serviceWorker.addEventListener("controllerchange", resolve, { once: true });
  setTimeout(resolve, 1000);
});

/** Whether the service worker has kept all files that this page needs; large ones take a while. */
export async function isOffline({ version, model, runtimes }) {
  if (!navigator.serviceWorker?.controller) return false;
  const cache = await caches.open(`eomt-deploy ${folder.href} ${version}`);
  const kept = async (paths) => {
    const found = await Promise.all(paths.map((path) => cache.match(new URL(path, folder))));
    return found.every(Boolean);
  };
  const paths = [model.model, ...model.sides];
  for (let attempt = 0; attempt < 100; attempt++) {
    const used = await Promise.all(Object.values(runtimes).map((files) => kept([...Object.values(files), ...paths])));
    if (used.some(Boolean)) return true;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return false;
}
