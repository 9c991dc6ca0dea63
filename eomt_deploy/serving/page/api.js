// Requests to the server; the token stays in this tab.
const STORED = "eomt-deploy-token";

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export function useToken(token) {
  sessionStorage.setItem(STORED, token);
}

/** Send a request; errors of the server become Refused with its explanation. */
export async function call(path, options = {}) {
  const token = sessionStorage.getItem(STORED);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch {
    throw new Refused(0, "The server does not answer. Check that it is running.");
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  const text = [content.error ?? `Status ${response.status}.`, content.fix ?? ""].join(" ").trim();
  throw new Refused(response.status, text);
}
