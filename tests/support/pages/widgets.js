// The widgets of ipywidgets that the page shows by itself: their models, and plain elements in the place of its views.
"use strict";

class Models {
  constructor(kernel) {
    Object.assign(this, { kernel, states: new Map(), views: new Map() });
  }

  open({ comm_id: id, target_name: target, data }) {
    if (target === "jupyter.widget") this.states.set(id, data.state);
  }

  /** Take over what Python has changed, and draw it. */
  change({ comm_id: id, data }) {
    if (data?.method !== "update" || !this.states.has(id)) return;
    Object.assign(this.states.get(id), data.state);
    for (const draw of this.views.get(id) ?? []) draw();
  }

  /** Tell Python what the user has changed. */
  set(id, state) {
    Object.assign(this.states.get(id), state);
    this.kernel.send("shell", "comm_msg", { comm_id: id, data: { method: "update", state, buffer_paths: [] } });
  }

  show(parent, id) {
    const state = this.states.get(id);
    const kind = state._model_name;
    const element = parent.appendChild(parent.ownerDocument.createElement(kind.startsWith("IntSlider") ? "input" : kind.endsWith("ProgressModel") ? "progress" : "span"));
    const draw = () => {
      if (element.tagName === "INPUT") Object.assign(element, { type: "range", min: state.min, max: state.max, value: state.value });
      else if (element.tagName === "PROGRESS") Object.assign(element, { max: state.max, value: state.value });
      else if (kind === "HTMLModel") element.innerHTML = state.value;
      else if (kind === "OutputModel") element.textContent = state.outputs.map((one) => one.text ?? "").join("");
    };
    for (const child of state.children ?? []) this.show(element, child.replace("IPY_MODEL_", ""));
    element.onchange = () => this.set(id, { value: Number(element.value) });
    this.views.set(id, [...(this.views.get(id) ?? []), draw]);
    draw();
  }
}
