"use strict";
// One client for each node, all in this page. The page knows the nodes from the `events` stream of the command that
// serves it, and speaks to each node directly by WebSocket (subprotocol fanout.v1), as any browser would.

const HUES = [172, 262, 32, 338, 212, 96, 292, 12];
const PULSE_MS = 420;
const byId = (id) => document.getElementById(id);
const now = () => performance.timeOrigin + performance.now();
const still = matchMedia("(prefers-reduced-motion: reduce)");
const hue = (index) => HUES[(index - 1) % HUES.length];

let cluster = null; // what `events` said last
const nodes = new Map(); // index → { info, card }
const clients = new Map(); // index of the home node → Client

// --- Clients ---

class Client {
  constructor(home) {
    this.home = home;
    this.node = null; // index of the node it is connected to
    this.socket = null;
    this.attempt = 0;
    this.timer = 0;
    this.sent = 0;
    this.id = `${home}-${Math.random().toString(36).slice(2, 8)}`;
    this.panel = byId("client-template").content.firstElementChild.cloneNode(true);
    this.panel.dataset.client = home;
    this.find("h2 .name").textContent = `Client ${home}`;
    this.find("input").placeholder = "Type a message…";
    this.find("input").setAttribute("aria-label", `Message from client ${home}`);
    this.find(".log").dataset.empty = "Nothing yet. What anyone sends shows up here.";
    this.find("form").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    this.paint();
  }

  find(selector) { return this.panel.querySelector(selector); }

  // Its own node if that is ready, else the ready one with the fewest clients of this page.
  choose() {
    const ready = [...nodes.values()].filter(({ info }) => info.state === "ready").map(({ info }) => info.index);
    if (ready.includes(this.home)) return this.home;
    const load = (index) => [...clients.values()].filter((client) => client.node === index).length;
    return ready.sort((a, b) => load(a) - load(b) || a - b)[0] ?? null;
  }

  connect() {
    clearTimeout(this.timer);
    this.timer = 0;
    const index = this.choose();
    if (index === null) return this.paint(); // a change of the nodes calls again
    const { port } = nodes.get(index).info;
    const socket = new WebSocket(`ws://${location.hostname}:${port}/ws/${encodeURIComponent(cluster.channel)}`, ["fanout.v1"]);
    this.socket = socket;
    this.node = index;
    this.ready = false;
    this.plan = null;
    socket.onmessage = (event) => this.on(JSON.parse(event.data));
    socket.onclose = (event) => { if (this.socket === socket) this.lost(event); };
    this.paint();
  }

  on(message) {
    if (message.subscribed) {
      this.ready = true;
      this.attempt = 0;
      this.problem("");
      if (this.last !== undefined && this.last !== this.node) this.note(`moved from node ${this.last} to node ${this.node}`);
      this.last = this.node;
      this.paint();
    } else if (message.pub) {
      this.show(message.pub);
    } else if (message.gap) {
      this.note(`messages were lost on the way (${message.gap.reason})`);
    } else if (message.reconnect) {
      this.plan = message.reconnect;
    } else if (message.error) {
      this.problem(message.error.message ?? `error ${message.error.code}`);
    }
  }

  // A node that ends says when to come back, so that thousands do not return at once. This page has few clients
  // and someone who watches: it waits two seconds at most.
  lost(event) {
    const { afterMs = 0, jitterMs = 0 } = this.plan ?? {};
    const told = Math.min(afterMs + Math.random() * jitterMs, 2000);
    const backOff = Math.min(200 * 2 ** this.attempt, 5000) * (0.5 + Math.random() / 2);
    if (!this.plan && event.code !== 1006 && event.reason) this.problem(event.reason);
    this.node = null;
    this.socket = null;
    this.ready = false;
    this.attempt += 1;
    this.timer = setTimeout(() => this.connect(), this.plan ? told : backOff);
    this.paint();
  }

  close() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    this.node = null;
    socket?.close(1000);
  }

  // The nodes changed: come home if home is back, or try again if there was nowhere to go.
  reconsider() {
    if (this.socket && this.ready && this.node !== this.home && this.choose() === this.home) {
      this.close();
      this.connect();
    } else if (!this.socket && !this.timer) {
      this.connect();
    } else {
      this.paint();
    }
  }

  send() {
    const input = this.find("input");
    const text = input.value.trim();
    if (!text) return;
    if (!this.ready) return this.problem("Not connected yet: the message was not sent.");
    this.sent += 1;
    const data = { text, client: this.id, node: this.node, at: now() };
    this.socket.send(JSON.stringify({ publish: { channel: cluster.channel, data, id: String(this.sent) } }));
    this.problem("");
    input.value = "";
    pulse(["client", this.home], ["node", this.node]).then(() => pulse(["node", data.node], ["broker"]));
  }

  show({ data, b64data, publisher }) {
    const arrived = now();
    if (data === undefined) data = `${atob(b64data).length} bytes`;
    if (typeof data === "string") { try { data = JSON.parse(data); } catch { /* plain text */ } }
    const ours = typeof data === "object" && data !== null && typeof data.client === "string" && Number.isFinite(data.at);
    const item = document.createElement("li");
    const text = ours || typeof data?.text === "string" ? data.text : typeof data === "string" ? data : JSON.stringify(data);
    item.append(make("div", "bubble", text));
    const meta = make("div", "meta");
    if (ours) {
      item.style.setProperty("--from", hue(data.node));
      item.classList.toggle("own", data.client === this.id);
      meta.append(make("span", "via", `node ${data.node}`), make("span", "ms", time(arrived - data.at)));
    } else {
      item.classList.add("outsider");
      meta.append(make("span", "", publisher ? `from ${publisher.user ?? publisher.client}` : "from outside the browser"));
    }
    item.append(meta);
    this.add(item);
    const wait = ours ? 2 * PULSE_MS : 0; // behind the dot that carries it to the broker
    setTimeout(() => pulse(["broker"], ["node", this.node]).then(() => pulse(["node", this.node], ["client", this.home])), still.matches ? 0 : wait);
  }

  note(text) { this.add(make("li", "event", text)); }

  add(item) {
    const log = this.find(".log");
    log.append(item);
    while (log.children.length > 200) log.firstElementChild.remove();
    log.scrollTop = log.scrollHeight;
  }

  problem(text) {
    const line = this.find(".problem");
    line.hidden = !text;
    line.textContent = text;
  }

  paint() {
    const where = this.find(".where");
    const on = this.ready ? this.node : null;
    this.panel.style.setProperty("--hue", hue(on ?? this.home));
    this.panel.dataset.on = on ?? "";
    where.classList.toggle("lost", on === null);
    where.classList.toggle("moved", on !== null && on !== this.home);
    where.textContent = on !== null ? `connected to node ${on}` : this.choose() === null ? "no node is ready" : "connecting…";
    drawWires();
  }
}

// --- Nodes ---

const STATES = { ready: "ready", starting: "starting…", draining: "clients are leaving…", stopped: "stopped", failed: "ended, will be restarted" };

function paintNodes(list) {
  for (const info of list) {
    if (!nodes.has(info.index)) {
      const card = byId("node-template").content.firstElementChild.cloneNode(true);
      card.dataset.node = info.index;
      card.style.setProperty("--hue", hue(info.index));
      card.querySelector(".toggle").addEventListener("click", () => toggle(info.index));
      nodes.set(info.index, { info, card });
      byId("nodes").append(card);
    }
    const node = nodes.get(info.index);
    node.info = info;
    paintNode(node, list);
  }
  for (const [index, { card }] of nodes) {
    if (list.some((info) => info.index === index)) continue;
    card.remove();
    nodes.delete(index);
  }
}

function paintNode({ info, card }, list) {
  const find = (selector) => card.querySelector(selector);
  const serving = info.state === "ready";
  card.dataset.state = info.state;
  card.title = info.detail ?? "";
  find(".name").textContent = `node ${info.index}`;
  find(".count").textContent = serving || info.state === "draining" ? info.connections : "";
  find(".unit").textContent = serving ? (info.connections === 1 ? "connection" : "connections") : STATES[info.state];
  find(".port").textContent = `port ${info.port}`;
  const button = find(".toggle");
  const up = info.state !== "stopped";
  const last = serving && list.filter(({ state }) => state === "ready").length === 1;
  button.textContent = up ? "Stop node" : "Start node";
  button.disabled = !["ready", "stopped"].includes(info.state) || last;
  button.title = last ? "The last node stays, or there would be nowhere to go." : "";
}

async function toggle(index) {
  const { info } = nodes.get(index);
  const verb = info.state === "stopped" ? "start" : "stop";
  const reply = await fetch(`nodes/${index}/${verb}`, { method: "POST" });
  if (!reply.ok) fatal(await reply.text());
}

// --- The drawing between them ---

const wires = new Map(); // "broker>node:2" → path

function place(kind, index) {
  if (kind === "broker") return byId("broker");
  if (kind === "node") return nodes.get(index)?.card;
  return clients.get(index)?.panel;
}

function curve(from, to, fromEdge, toEdge) {
  const stage = byId("stage").getBoundingClientRect();
  const [a, b] = [from.getBoundingClientRect(), to.getBoundingClientRect()];
  const x2 = b.left + b.width / 2 - stage.left;
  const x1 = from.id === "broker" ? x2 : a.left + a.width / 2 - stage.left;
  const y1 = a[fromEdge] - stage.top;
  const y2 = b[toEdge] - stage.top;
  const middle = (y1 + y2) / 2;
  return `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
}

function drawWires() {
  const wanted = new Map();
  for (const [index, { info }] of nodes) {
    wanted.set(`broker>node:${index}`, [["broker"], ["node", index], info.state === "ready" ? "" : "off"]);
  }
  for (const [home, client] of clients) {
    if (client.ready) wanted.set(`node>client:${home}`, [["node", client.node], ["client", home], client.node === home ? "" : "moved"]);
  }
  for (const [key, path] of wires) if (!wanted.has(key)) { path.remove(); wires.delete(key); }
  for (const [key, [from, to, look]] of wanted) {
    const [a, b] = [place(...from), place(...to)];
    if (!a?.isConnected || !b?.isConnected) continue;
    if (!wires.has(key)) {
      wires.set(key, document.createElementNS("http://www.w3.org/2000/svg", "path"));
      byId("wires").append(wires.get(key));
    }
    const path = wires.get(key);
    path.setAttribute("class", look);
    path.setAttribute("d", curve(a, b, "bottom", "top"));
    path.style.stroke = look === "moved" ? `hsl(${hue(from[1])} 58% 55%)` : "";
  }
}

// A dot from one place to the next, along their wire; the place it reaches lights up.
function pulse(from, to) {
  const [a, b] = [place(...from), place(...to)];
  const down = { broker: 0, node: 1, client: 2 };
  const forward = down[from[0]] < down[to[0]];
  const [upper, lower] = forward ? [from, to] : [to, from];
  const path = wires.get(`${upper[0]}>${lower[0]}:${lower[1]}`);
  const light = () => {
    if (!b || b.classList.contains("client")) return;
    b.classList.add("lit");
    setTimeout(() => b.classList.remove("lit"), 350);
  };
  if (!a || !b || !path || still.matches) { light(); return Promise.resolve(); }
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  dot.setAttribute("r", 5);
  dot.style.fill = `hsl(${from[0] === "broker" || to[0] === "broker" ? 8 : hue(upper[1])} 70% 55%)`;
  byId("wires").append(dot);
  const length = path.getTotalLength();
  const started = performance.now();
  return new Promise((resolve) => {
    const step = (at) => {
      const part = Math.min((at - started) / PULSE_MS, 1);
      const eased = part < 0.5 ? 2 * part * part : 1 - (2 - 2 * part) ** 2 / 2;
      const point = path.getPointAtLength(length * (forward ? eased : 1 - eased));
      dot.setAttribute("cx", point.x);
      dot.setAttribute("cy", point.y);
      if (part < 1) return requestAnimationFrame(step);
      dot.remove();
      light();
      resolve();
    };
    step(started);
  });
}

// --- The page ---

function make(name, className, text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

const time = (ms) => (ms < 0 ? "" : ms < 100 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`);

function fatal(text) {
  document.querySelector(".fatal.live")?.remove();
  if (text) document.querySelector("header").append(make("p", "fatal live", text));
}

function paintCommands(commands) {
  const box = byId("commands");
  if (box.dataset.shown === JSON.stringify(commands)) return;
  box.dataset.shown = JSON.stringify(commands);
  box.replaceChildren(...commands.map((command) => {
    const row = make("div", "command");
    const button = make("button", "", "Copy");
    button.type = "button";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(command);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    row.append(make("code", "", command), button);
    return row;
  }));
}

function paintLead({ nodes: list, channel, name }) {
  const words = ["No node runs", "One node runs", "Two nodes run", "Three nodes run", "Four nodes run", "Five nodes run"];
  const lead = byId("lead");
  lead.replaceChildren(
    `${words[list.length] ?? `${list.length} nodes run`} on this machine as the cluster `, make("b", "", name),
    ". Each client below is connected to a different node, and all listen to the channel ", make("b", "", channel),
    ". Write in any of them: it arrives in all.");
}

function onCluster(next) {
  cluster = next;
  paintLead(cluster);
  byId("broker-name").textContent = cluster.broker === "redis" ? "Redis" : "In memory";
  byId("broker-note").textContent = cluster.broker === "redis"
    ? "carries each message from the node that got it to all nodes" : "one node needs nothing between nodes";
  byId("stage").style.setProperty("--columns", cluster.nodes.length);
  paintNodes(cluster.nodes);
  paintCommands(cluster.commands);
  fatal(cluster.problem ?? "");
  if (!cluster.channel) return;
  for (const { index } of cluster.nodes) {
    if (clients.has(index)) continue;
    const client = new Client(index);
    clients.set(index, client);
    byId("clients").append(client.panel);
  }
  for (const [home, client] of clients) {
    if (nodes.has(home)) { client.reconsider(); continue; }
    client.close();
    client.panel.remove();
    clients.delete(home);
  }
  drawWires();
}

const events = new EventSource("events");
events.onmessage = (event) => onCluster(JSON.parse(event.data));
events.onerror = () => fatal("The command that serves this page has ended, or restarts: run it again and open the URL that it prints.");
new ResizeObserver(drawWires).observe(byId("stage"));
