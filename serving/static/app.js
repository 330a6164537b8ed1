// Draws the messages of the WebSocket and sends commands. No library, no build step.
"use strict";

const byId = (id) => document.getElementById(id);
const screen = byId("screen").getContext("2d");
const BUTTON_OF_KEY = {
  ArrowRight: 128, ArrowLeft: 64, ArrowDown: 32, ArrowUp: 16,
  z: 2, Z: 2, y: 2, Y: 2, x: 1, X: 1, " ": 1,
};
const ENDS = { flag: "Level cleared!", death: "Mario died.", time: "Time is up." };
const values = [];
let socket = null;
let personPlays = false;
let paused = false;
const pressed = new Map();  // pressed key → button
let version = null;
let frames = 0;
let drawing = false;

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/watch`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { say("live"); start(); };
  socket.onmessage = (event) => receive(event.data);
  socket.onclose = (event) => {
    say(event.reason ? `stopped: ${event.reason}` : "connection lost, reconnecting …");
    if (event.code < 4000) setTimeout(connect, 1500);
  };
}

function say(text) { byId("status").textContent = text; }

async function receive(data) {
  const length = new DataView(data).getUint32(0, true);
  const state = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  show(state);
  if (drawing) return;  // a slow browser skips pictures, never numbers
  drawing = true;
  try {
    const picture = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: "image/png" }));
    screen.drawImage(picture, 0, 0);
    picture.close();
    frames += 1;
    document.body.dataset.frames = frames;
  } finally {
    drawing = false;
  }
}

function show(state) {
  byId("x").textContent = state.x_px;
  byId("furthest").textContent = state.furthest_x_px;
  byId("time").textContent = state.time_left;
  byId("score").textContent = state.score;
  byId("coins").textContent = state.coins;
  byId("who").textContent = state.control === "person" ? "you" : "champion";
  Object.assign(document.body.dataset, {
    x: state.x_px, level: state.level, frame: state.frame, sticky: state.sticky,
  });
  for (const shape of document.querySelectorAll("#controller [data-bit]")) {
    shape.classList.toggle("on", (state.buttons & Number(shape.dataset.bit)) !== 0);
  }
  const banner = byId("banner");
  banner.hidden = !state.ended;
  if (state.ended) banner.textContent = ENDS[state.ended];
  if (document.activeElement !== byId("seed")) byId("seed").value = state.seed;
  if (document.activeElement !== byId("level")) byId("level").value = state.level;
  if (state.frame === 0) values.length = 0;
  if (state.decision !== undefined) showDecision(state.decision);
}

function showDecision(decision) {
  if (decision === null) { say("there is no champion to ask"); return; }
  const bars = byId("bars");
  if (bars.children.length !== decision.names.length || bars.dataset.version !== decision.version) {
    bars.dataset.version = decision.version;
    bars.replaceChildren(...decision.names.map((name) => {
      const bar = document.createElement("div");
      bar.className = "bar";
      bar.append(document.createElement("b"), document.createElement("i"), document.createElement("output"));
      bar.firstChild.textContent = name;
      return bar;
    }));
  }
  decision.probabilities.forEach((share, index) => {
    const bar = bars.children[index];
    bar.classList.toggle("chosen", index === decision.action);
    bar.children[1].style.setProperty("--share", share.toFixed(4));
    bar.children[2].value = `${(share * 100).toFixed(1)} %`;
  });
  byId("value").textContent = decision.value.toFixed(3);
  values.push(decision.value);
  if (values.length > 300) values.shift();
  drawValues();
  // A policy may be registered twice; the card belongs to the version, not to the digest.
  const answering = `${decision.version} ${decision.digest}`;
  if (answering !== version) { version = answering; loadCard(); }
}

function drawValues() {
  const canvas = byId("values");
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const low = Math.min(...values, 0), high = Math.max(...values, low + 1e-6);
  const y = (value) => 8 + (1 - (value - low) / (high - low)) * (canvas.height - 16);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = style.getPropertyValue("--line");
  pen.beginPath(); pen.moveTo(0, y(0)); pen.lineTo(canvas.width, y(0)); pen.stroke();
  pen.strokeStyle = style.getPropertyValue("--bar");
  pen.lineWidth = 2.5;
  pen.beginPath();
  values.forEach((value, index) => pen.lineTo((index / 299) * canvas.width, y(value)));
  pen.stroke();
  pen.lineWidth = 1;
}

async function loadCard() {
  const response = await fetch("/card");
  if (!response.ok) { say((await response.json()).error); return; }
  const card = await response.json();
  const rows = {
    model: card.model, version: card.version, digest: card.digest.slice(0, 16),
    promoted: card.promoted_at ? new Date(card.promoted_at).toLocaleString() : "–",
    why: card.reason || "–", actions: `${card.actions.length}, ${card.action_selection}`,
    "frame skip": card.frame_skip,
    "trained for": card.training_steps ? `${card.training_steps.toLocaleString("en")} steps` : "–",
    commit: card.git_commit.slice(0, 12), challenger: card.challenger || "–", ...card.details,
  };
  byId("card").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name; text.textContent = value; text.dataset.name = name;
    return [term, text];
  }));
  byId("rates").hidden = card.clear_rates.length === 0;
  const percent = (share) => `${(share * 100).toFixed(1)} %`;
  byId("rates").tBodies[0].replaceChildren(...card.clear_rates.map((rate) => {
    const row = document.createElement("tr");
    for (const text of [rate.level, `${rate.cleared} of ${rate.episodes}`, percent(rate.rate),
      `${percent(rate.low)} – ${percent(rate.high)}`]) row.insertCell().textContent = text;
    return row;
  }));
}

function start() {
  // Numbers beyond the largest safe integer would be sent rounded, or as 1e+300.
  const typed = Math.floor(Number(byId("seed").value) || 0);
  const seed = Math.min(Number.MAX_SAFE_INTEGER, Math.max(0, typed));
  send({ type: "start", level: byId("level").value, seed, sticky: byId("sticky").checked });
  send({ type: "speed", value: Number(byId("speed").value) });
  send({ type: "pause", value: paused });
  send({ type: "control", value: personPlays ? "person" : "champion" });
  if (pressed.size) sendButtons();  // taking control released all buttons
}

function sendButtons() {
  let held = 0;
  for (const bit of pressed.values()) held |= bit;
  send({ type: "buttons", value: held });
}

function letGo() {
  if (!pressed.size) return;
  pressed.clear();
  sendButtons();
}

function givePad(toPerson) {
  personPlays = toPerson;
  pressed.clear();
  const button = byId("pad");
  button.setAttribute("aria-pressed", String(personPlays));
  button.textContent = personPlays ? "Return control" : "Take control";
  send({ type: "control", value: personPlays ? "person" : "champion" });
  if (personPlays) byId("screen").focus();
}

function setPaused(value) {
  paused = value;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "Resume" : "Pause";
  send({ type: "pause", value: paused });
}

// Identify a key by its place: with Shift, Ctrl or AltGr its name may change before its release.
const placeOf = (event) => event.code || event.key;

function keyDown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { tagName, type } = event.target;
  const field = /^(INPUT|SELECT)$/.test(tagName) && type !== "checkbox";
  const bit = BUTTON_OF_KEY[event.key];
  const clicks = event.key === " " && (tagName === "BUTTON" || type === "checkbox");
  if (personPlays && bit !== undefined && !field && !clicks) {
    event.preventDefault();
    if (pressed.has(placeOf(event))) return;
    pressed.set(placeOf(event), bit);
    sendButtons();
    return;
  }
  // No number or level begins with one of these letters, so they work inside fields too.
  if (event.repeat) return;
  const key = event.key.toLowerCase();
  if (key === "t") givePad(!personPlays);
  else if (key === "p") setPaused(!paused);
  else if (key === "r") start();
  else return;
  if (field) event.preventDefault();
}

function keyUp(event) {
  // A released key releases its button, whatever has the focus and whatever else is pressed.
  if (pressed.delete(placeOf(event))) {
    event.preventDefault();
    sendButtons();
  }
  if (event.key === "Meta") letGo();  // macOS reports no key releases while Meta is pressed
}

// While a person plays, return the focus to the game.
function playOn() { if (personPlays) byId("screen").focus(); }

addEventListener("keydown", keyDown);
addEventListener("keyup", keyUp);
addEventListener("blur", letGo);
document.addEventListener("visibilitychange", () => { if (document.hidden) letGo(); });
byId("controls").addEventListener("submit", (event) => { event.preventDefault(); start(); playOn(); });
for (const name of ["level", "sticky"]) {
  byId(name).addEventListener("change", () => { start(); playOn(); });
}
byId("speed").addEventListener("change", (event) => {
  send({ type: "speed", value: Number(event.target.value) });
  playOn();
});
byId("pause").addEventListener("click", () => setPaused(!paused));
byId("pad").addEventListener("click", () => givePad(!personPlays));

for (let world = 1; world <= 8; world++) {
  for (let stage = 1; stage <= 4; stage++) byId("level").add(new Option(`${world}-${stage}`));
}
connect();
