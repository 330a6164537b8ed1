// Writes the OpenAPI document as a page and sends its examples. No library, no build step.
"use strict";

const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
};
const shorten = (text) => text.replace(/[A-Za-z0-9+/=]{80,}/g, (long) =>
  `${long.slice(0, 24)}… (${long.length} characters)`).replace(/(0,\s*){40,}0/g, "0, 0, … (zeros)");

// The bytes that stand for the binary examples: one black observation, one black screen.
const BYTES = { predict_raw: 28224, predict_frames: 4 * 184320, act: 7056 };

function example(operation) {
  const content = operation.requestBody ? operation.requestBody.content : {};
  const found = [];
  for (const [type, media] of Object.entries(content)) {
    for (const [name, item] of Object.entries(media.examples || {})) {
      found.push({ type, name, body: JSON.stringify(item.value) });
    }
    if (type === "application/octet-stream" && BYTES[operation.operationId]) {
      found.push({ type, name: "zeros", body: new Uint8Array(BYTES[operation.operationId]) });
    }
  }
  return operation.requestBody ? found : [{ type: null, name: "ask", body: undefined }];
}

async function newSession() {
  const response = await fetch("/sessions", { method: "POST" });
  return (await response.json()).session;
}

function show(path, method, operation) {
  const section = make("section");
  const title = make("h2");
  title.append(make("code", method.toUpperCase(), "method"), make("code", path));
  section.append(title, make("p", operation.summary));
  for (const item of example(operation)) {
    const about = item.type ? `${item.type} · ${item.name}` : "no body";
    const button = make("button", `Send: ${about}`);
    button.dataset.operation = operation.operationId;
    const output = make("pre");
    output.hidden = true;
    button.addEventListener("click", async () => {
      const url = path.includes("{id}") ? path.replace("{id}", await newSession()) : path;
      const headers = item.type ? { "content-type": item.type } : {};
      const response = await fetch(url, { method: method.toUpperCase(), headers, body: item.body });
      output.hidden = false;
      output.dataset.status = response.status;
      const sent = typeof item.body === "string" ? shorten(item.body)
        : item.body ? `${item.body.length} bytes` : "";
      output.textContent = `${method.toUpperCase()} ${url}\n${sent}\n\n${response.status} ` +
        `${response.statusText}\n${shorten(await response.text())}`;
    });
    const line = make("p");
    line.append(button);
    section.append(line, output);
  }
  const statuses = make("p", `Answers: ${Object.keys(operation.responses).join(", ")}`);
  section.append(statuses);
  return section;
}

(async () => {
  const openapi = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = openapi.info.description;
  const list = document.getElementById("operations");
  for (const [path, methods] of Object.entries(openapi.paths)) {
    for (const [method, operation] of Object.entries(methods)) list.append(show(path, method, operation));
  }
  document.body.dataset.ready = "yes";
})();
