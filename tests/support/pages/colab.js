// What Colab's page does to run a cell in a local runtime, on either of its two transports.
// Each step is listed on the page, so that a failure shows which request the browser or the server refused.
"use strict";

const MIN_VERSION = "0.0.7"; // what Colab asks of jupyter_http_over_ws
const STEP_TIMEOUT_MS = 120000; // covers a kernel's first start on a loaded machine

/** Return `promise`, or a rejection that names `what` after STEP_TIMEOUT_MS. */
function withinTime(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: no answer in ${STEP_TIMEOUT_MS / 1000} s`)), STEP_TIMEOUT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Run `action` as a step that the page lists, with its outcome. */
async function step(name, action) {
  const item = document.createElement("li");
  item.textContent = `${name} ...`;
  document.getElementById("steps").append(item);
  try {
    const result = await withinTime(action(), name);
    item.textContent = `${name}: ok`;
    return result;
  } catch (error) {
    item.textContent = `${name}: ${error.message}`;
    throw new Error(`${name}: ${error.message}`);
  }
}

/** Open a WebSocket; scripts are told nothing but a close code when the browser or the server refuses. */
function openSocket(url) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.onopen = () => resolve(socket);
    socket.onclose = (event) => reject(new Error(`WebSocket closed with code ${event.code}`));
  });
}

/** The scheme, host and port for WebSockets of the Jupyter server at `base`. */
const socketOrigin = (base) => `${base.protocol === "https:" ? "wss:" : "ws:"}//${base.host}`;

/** Transport 1: every HTTP request travels inside one WebSocket, and the server makes it to itself. */
function overWebSocket(base) {
  const query = new URLSearchParams({ min_version: MIN_VERSION, jupyter_http_over_ws_auth_url: base.href });
  const origin = socketOrigin(base);
  const waiting = new Map();
  let socket;
  let count = 0;

  function receive(event) {
    const part = JSON.parse(event.data);
    const request = waiting.get(part.message_id);
    if (!request) return;
    request.status ??= part.status;
    if (part.data) request.body += atob(part.data);
    if (!part.done) return;
    waiting.delete(part.message_id);
    if (request.status >= 400) request.reject(new Error(`HTTP ${request.status} ${part.statusText ?? ""}`));
    else request.resolve(request.body && JSON.parse(request.body));
  }

  return {
    async open() {
      socket = await openSocket(`${origin}/http_over_websocket?${query}`);
      socket.onmessage = receive;
      socket.onclose = (event) => {
        for (const request of waiting.values()) request.reject(new Error(`WebSocket closed with code ${event.code}`));
      };
    },
    request: (method, path, body) =>
      new Promise((resolve, reject) => {
        if (socket.readyState !== WebSocket.OPEN) throw new Error("the WebSocket is closed");
        const id = String(++count);
        waiting.set(id, { resolve, reject, body: "" });
        const message = { path, method, message_id: id };
        if (body) message.body_base64 = btoa(JSON.stringify(body));
        socket.send(JSON.stringify(message));
      }),
    channels: (path, session) => {
      const all = new URLSearchParams([["session_id", session], ...query]);
      return openSocket(`${origin}/http_over_websocket/proxied_ws${path}?${all}`);
    },
    close: () => socket?.close(),
  };
}

/** Transport 2: cross-origin requests with credentials straight to the Jupyter server. */
function directly(base) {
  const token = base.searchParams.get("token") ?? "";

  async function send(method, path, body) {
    const url = new URL(path, base.origin);
    url.searchParams.set("token", token);
    const headers = body ? { "Content-Type": "application/json" } : {};
    return fetch(url, { method, headers, credentials: "include", body: body && JSON.stringify(body) });
  }

  return {
    // Only Colab's own runtime image knows this address; any answer that the browser lets through is an answer.
    open: () => send("GET", "/api/colab/build-info"),
    async request(method, path, body) {
      const response = await send(method, path, body);
      if (!response.ok) throw new Error(`HTTP ${response.status} ${response.statusText}`);
      const text = await response.text();
      return text && JSON.parse(text);
    },
    channels: (path, session) =>
      openSocket(`${socketOrigin(base)}${path}?${new URLSearchParams({ session_id: session, token })}`),
    close: () => {},
  };
}

/** Execute `code` over a kernel's channels and resolve with what it printed. */
function execute(channels, session, code) {
  const id = crypto.randomUUID();
  const header = { msg_id: id, msg_type: "execute_request", session, username: "", version: "5.3", date: new Date().toISOString() };
  const content = { code, silent: false, store_history: true, user_expressions: {}, allow_stdin: false, stop_on_error: true };
  return new Promise((resolve, reject) => {
    let printed = "";
    channels.onclose = (event) => reject(new Error(`WebSocket closed with code ${event.code}`));
    channels.onmessage = (event) => {
      const message = JSON.parse(event.data);
      if (message.parent_header?.msg_id !== id) return;
      if (message.msg_type === "stream") printed += message.content.text;
      if (message.msg_type === "error") reject(new Error(`${message.content.ename}: ${message.content.evalue}`));
      if (message.msg_type === "status" && message.content.execution_state === "idle") resolve(printed);
    };
    channels.send(JSON.stringify({ header, parent_header: {}, metadata: {}, content, channel: "shell", buffers: [] }));
  });
}

/** Reach `server` and resolve with a new session and its kernel. */
async function connectSession(server) {
  await step("reach the server", () => server.open());
  const specs = await step("list the kernels", () => server.request("GET", "/api/kernelspecs"));
  const body = { name: "", path: `page-${crypto.randomUUID()}.ipynb`, type: "notebook", kernel: { name: specs.default } };
  return step("start a kernel", () => server.request("POST", "/api/sessions", body));
}

/** Connect as Colab does, run one cell and leave nothing running. */
async function connectAndRun(url, transport, code) {
  const base = new URL(url);
  const server = transport === "direct" ? directly(base) : overWebSocket(base);
  try {
    const session = await connectSession(server);
    try {
      const client = crypto.randomUUID();
      const path = `/api/kernels/${session.kernel.id}/channels`;
      const channels = await step("open its channels", () => server.channels(path, client));
      try {
        return await step("run the cell", () => execute(channels, client, code));
      } finally {
        channels.onclose = null;
        channels.close();
      }
    } finally {
      await server.request("DELETE", `/api/sessions/${session.id}`);
    }
  } finally {
    server.close();
  }
}

document.getElementById("form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const value = (id) => document.getElementById(id).value;
  const state = document.getElementById("state");
  const show = (name, text) => {
    state.textContent = text;
    state.dataset.state = name;
  };
  document.getElementById("steps").replaceChildren();
  document.getElementById("output").textContent = "";
  show("busy", "Connecting");
  try {
    document.getElementById("output").textContent = await connectAndRun(value("url"), value("transport"), value("cell"));
    show("done", "Connected");
  } catch (error) {
    show("failed", `Unable to connect to the runtime. ${error.message}`);
  }
});
