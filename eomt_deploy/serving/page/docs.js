// A list of all routes, from /openapi.json.
import { call } from "./api.js";

function add(parent, tag, text) {
  const found = parent.appendChild(document.createElement(tag));
  found.textContent = text ?? "";
  return found;
}

function typeOf(schema) {
  const options = schema.anyOf?.filter((entry) => entry.type !== "null").map(typeOf);
  if (options) return options.join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  return schema.type === "array" ? `${typeOf(schema.items)}, repeatable` : schema.type;
}

try {
  const content = await (await call("/openapi.json")).json();
  document.getElementById("intro").textContent =
    "Clients of the Open Inference Protocol use the addresses below /v2; for everything else, POST /segment is simpler.";
  for (const [path, methods] of Object.entries(content.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      const box = add(document.getElementById("routes"), "section");
      box.className = "route";
      add(box, "h2", `${method.toUpperCase()} ${path}`);
      add(box, "p", route.description);
      const values = (route.parameters ?? []).filter((entry) => entry.in === "query");
      if (!values.length) continue;
      const table = add(box, "table");
      for (const { name, schema, description } of values) {
        const row = table.insertRow();
        for (const text of [name, typeOf(schema), schema.default ?? "", description ?? schema.description ?? ""]) {
          add(row, "th", text);
        }
      }
    }
  }
} catch (error) {
  document.getElementById("intro").textContent = `${error.message} Open the page first and enter the token there.`;
}
