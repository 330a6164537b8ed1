// Renders the OpenAPI document and sends its examples. No library, no build step.
"use strict";

const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
};
const shorten = (text) => text.replace(/[A-Za-z0-9+/=]{80,}/g, (long) =>
  `${long.slice(0, 24)}… (${long.length} characters)`).replace(/(0,\s*){40,}0/g, "0, 0, … (zeros)");

// The JSON document describes a binary example as a number of zero bytes or as base64.
function bytes(media) {
  if (media["x-example-zeros"]) return new Uint8Array(media["x-example-zeros"]);
  if (media["x-example-base64"]) {
    return Uint8Array.from(atob(media["x-example-base64"]), (character) => character.charCodeAt(0));
  }
  return null;
}

function example(operation) {
  if (!operation.requestBody) return [{ type: null, name: "ask", body: undefined }];
  const found = [];
  for (const [type, media] of Object.entries(operation.requestBody.content)) {
    for (const [name, item] of Object.entries(media.examples || {})) {
      found.push({ type, name, body: JSON.stringify(item.value) });
    }
    const data = bytes(media);
    if (data) found.push({ type, name: "black", body: data });
  }
  return found;
}

// Values of path parameters: a new session, the version that answers.
async function fill(path) {
  if (path.includes("{id}")) return path.replace("{id}", await newSession());
  if (!path.includes("{version}")) return path;
  const model = await (await fetch("/v2/models/mario")).json();
  return path.replace("{version}", encodeURIComponent(model.versions[0]));
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
      const url = await fill(path);
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
