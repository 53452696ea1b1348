// What Colab's page does while a notebook runs: it shows outputs, each cell's in a frame of its own, and answers what
// google.colab asks (googlecolab/colabtools, google/colab/_message.py; the names that scripts in outputs use are those
// of its files.py, _ports.py and data_table.py).
"use strict";

const WIDGET_VIEW = "application/vnd.jupyter.widget-view+json";
const MODULE = "application/vnd.google.colaboratory.module+javascript";
const FRAME = "<!doctype html><style>body { font: 14px system-ui; margin: 8px 0 } pre { margin: 0; white-space: pre-wrap }" +
  "table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: 2px 8px }</style><body></body>";

/** What the user of the page decides: secrets {name: {payload, access}}, and whether the page answers at all. */
const user = { secrets: {}, answers: true };

/** Return a kernel's message; in a binary one a table of offsets comes before its JSON and its buffers. */
function decode(data) {
  if (typeof data === "string") return JSON.parse(data);
  const table = new DataView(data);
  const count = table.getUint32(0);
  const ends = Array.from({ length: count }, (_, i) => table.getUint32(4 * (i + 1)));
  const parts = ends.map((start, i) => data.slice(start, ends[i + 1] ?? data.byteLength));
  return { ...JSON.parse(new TextDecoder().decode(parts[0])), buffers: parts.slice(1) };
}

/** Return what a terminal shows that showed `before` and is sent `text`: progress bars go back to their line's start. */
function terminal(before, text) {
  const lines = before.split("\n");
  let line = lines.pop();
  let column = line.length;
  for (const letter of text.replace(/\x1b\[[0-9;]*[A-Za-z]/g, "")) {
    if (letter === "\n") [line, column] = [lines.push(line) && "", 0];
    else if (letter === "\r") column = 0;
    else if (letter === "\b") column = Math.max(0, column - 1);
    else [line, column] = [line.slice(0, column) + letter + line.slice(column + 1), column + 1];
  }
  return [...lines, line].join("\n");
}

/** A kernel's channels, as every cell and comm of the page shares them. */
class Kernel {
  constructor(server, session, channels) {
    Object.assign(this, { server, session, channels, client: crypto.randomUUID(), listeners: new Map(), comms: new Map() });
    this.models = new Models(this);
    channels.binaryType = "arraybuffer";
    channels.onmessage = (event) => this.receive(decode(event.data));
  }

  send(channel, kind, content, metadata = {}) {
    const id = crypto.randomUUID();
    const header = { msg_id: id, msg_type: kind, session: this.client, username: "", version: "5.3", date: new Date().toISOString() };
    this.channels.send(JSON.stringify({ header, parent_header: {}, metadata, content, channel, buffers: [] }));
    return id;
  }

  receive(message) {
    const { comm_id: comm } = message.content;
    if (message.msg_type === "comm_open") this.models.open(message.content);
    else if (message.msg_type === "comm_msg" || message.msg_type === "comm_close") {
      this.comms.get(comm)?.(message);
      this.models.change(message.content);
    } else this.listeners.get(message.parent_header?.msg_id)?.(message);
  }

  /** Open a comm to `target`, as google.colab.kernel.comms.open does. */
  async open(target) {
    const id = crypto.randomUUID();
    const received = [];
    let wake = () => {};
    this.comms.set(id, (message) => (received.push(message), wake()));
    this.send("shell", "comm_open", { comm_id: id, target_name: target, data: {} });
    async function* messages() {
      for (;;) {
        while (!received.length) await new Promise((resolve) => (wake = resolve));
        const message = received.shift();
        if (message.msg_type === "comm_close") return;
        yield { data: message.content.data, buffers: message.buffers };
      }
    }
    return { send: (data) => this.send("shell", "comm_msg", { comm_id: id, data }), messages: messages() };
  }

  interrupt() {
    return this.server.request("POST", `/api/kernels/${this.session.kernel.id}/interrupt`);
  }

  async close() {
    this.channels.onclose = null;
    this.channels.close();
    await this.server.request("DELETE", `/api/sessions/${this.session.id}`);
    this.server.close();
  }
}

/** A cell that runs: its code, and its output in a frame. */
class Cell {
  constructor(kernel, code) {
    this.kernel = kernel;
    this.code = code;
    this.shown = new Map(); // by display_id: the element
    this.section = document.createElement("section");
    this.section.dataset.state = "busy";
    this.section.append(Object.assign(document.createElement("pre"), { textContent: code }));
    this.frame = this.section.appendChild(document.createElement("iframe"));
    this.frame.srcdoc = FRAME;
    document.getElementById("cells").append(this.section);
  }

  async run() {
    await new Promise((resolve) => (this.frame.onload = resolve));
    this.scope = this.frame.contentWindow;
    this.body = this.frame.contentDocument.body;
    const fit = () => (this.frame.style.height = `${this.body.scrollHeight + 20}px`);
    new this.scope.ResizeObserver(fit).observe(this.body);
    this.scope.google = { colab: this.names() };
    // (stop_on_error would let the kernel drop the next cell, too, if it comes within a moment of an error.)
    const content = { code: this.code, silent: false, store_history: true, user_expressions: {}, allow_stdin: false, stop_on_error: false };
    const id = this.kernel.send("shell", "execute_request", content);
    this.kernel.listeners.set(id, (message) => this.receive(message));
  }

  /** What scripts in this cell's output find as google.colab. */
  names() {
    const { kernel } = this;
    return {
      kernel: {
        accessAllowed: true,
        comms: { open: (target) => kernel.open(target) },
        proxyPort: async (port) => `http://localhost:${port}/`, // the runtime is this machine
      },
      output: { setIframeHeight: () => {} },
    };
  }

  receive({ msg_type: kind, content, metadata }) {
    if (kind === "stream") this.print(content.text);
    else if (kind === "error") this.fail(`${content.ename}: ${content.evalue}`);
    else if (kind === "colab_request") this.answer(metadata, content.request);
    else if (kind === "clear_output") this.body.replaceChildren();
    else if (kind === "display_data" || kind === "execute_result") this.add(content);
    else if (kind === "update_display_data") this.show(this.shown.get(content.transient.display_id), content);
    else if (kind === "status" && content.execution_state === "idle" && this.section.dataset.state === "busy") this.section.dataset.state = "done";
  }

  fail(words) {
    this.print(`${words}\n`);
    this.section.dataset.state = "failed";
  }

  print(text) {
    let last = this.body.lastElementChild;
    if (last?.className !== "stream") last = this.body.appendChild(Object.assign(document.createElement("pre"), { className: "stream" }));
    last.textContent = terminal(last.textContent, text);
  }

  add(content) {
    const element = this.body.appendChild(document.createElement("div"));
    if (content.transient?.display_id) this.shown.set(content.transient.display_id, element);
    this.show(element, content);
  }

  /** Show the richest of an output's kinds that the page knows, scripts included. */
  show(element, { data, metadata }) {
    const kinds = {
      [MODULE]: (text) => this.script(element, text, "module"),
      "application/javascript": (text) => this.script(element, text),
      [WIDGET_VIEW]: ({ model_id: model }) => this.widget(element, model, metadata[WIDGET_VIEW]?.colab?.custom_widget_manager?.url),
      "text/html": (text) => {
        element.innerHTML = text;
        for (const old of element.querySelectorAll("script")) this.script(element, old.textContent);
      },
      "image/png": (text) => (element.innerHTML = `<img src="data:image/png;base64,${text}">`),
      "text/plain": (text) => (element.innerHTML = "<pre></pre>", element.firstChild.textContent = text),
    };
    const kind = Object.keys(kinds).find((one) => one in data);
    element.replaceChildren();
    element.dataset.kind = kind;
    kinds[kind]?.(data[kind]);
  }

  script(element, text, type = "") {
    this.scope.element = element; // where a script finds its output's element
    element.append(Object.assign(this.frame.contentDocument.createElement("script"), { textContent: text, type }));
  }

  /** Show a widget: with the page's own manager, or with the one at `url`, a module, when the notebook asks for it. */
  async widget(element, model, url) {
    if (!url) return this.kernel.models.show(element, model);
    const manager = await this.scope.eval(`import(${JSON.stringify(url)})`);
    return manager.render(this.kernel.models, model, element);
  }

  /** Answer google.colab, unless the user has left. */
  async answer(metadata, request) {
    const id = metadata.colab_msg_id;
    this.section.dataset.asked = metadata.colab_request_type;
    const reply = { type: "colab_reply", colab_msg_id: id };
    try {
      reply.data = (await this.asked(metadata.colab_request_type, request)) ?? null;
    } catch (error) {
      reply.error = String(error);
    }
    if (id !== undefined && user.answers) this.kernel.send("stdin", "input_reply", { value: reply });
  }

  asked(kind, request) {
    if (kind === "cell_javascript_eval") return this.scope.eval(request.script);
    if (kind !== "GetSecret") throw new Error(`unknown request: ${kind}`);
    const secret = user.secrets[request.key];
    return { exists: Boolean(secret), access: Boolean(secret?.access), payload: secret?.access ? secret.payload : undefined };
  }
}

/** Connect as Colab does, and let `notebook` be the kernel. */
async function openNotebook(url, transport) {
  const base = new URL(url);
  const server = transport === "direct" ? directly(base) : overWebSocket(base);
  const session = await connectSession(server);
  const path = `/api/kernels/${session.kernel.id}/channels`;
  globalThis.notebook = new Kernel(server, session, await step("open its channels", () => server.channels(path, crypto.randomUUID())));
}

/** Run `code` as the next cell; its section shows how it ends. */
function runCell(code) {
  void new Cell(globalThis.notebook, code).run();
}
