// The cards of the integrations: how each is doing, and what can be executed on it.

import { by, copy, el, enable, facts, first, say, show, usable } from "/static/dom.js";
import { STATES, number, sentence, time } from "/static/words.js";

/** What a model that says nothing of itself may do, it may be asked to do. */
const canChat = ({ capabilities }) => !capabilities.length || capabilities.includes("chat");

/** One card. It is changed in place, so that a look at the server takes no focus and no choice. */
class Card {
  constructor(id, acts) {
    this.id = id;
    this.node = copy("card");
    this._part = (name) => this.node.querySelector(name);
    this._state = null;

    say(this._part("h3"), id);
    this._select = this._part("select");
    this._select.id = `model-${id}`;
    this._part(".model-label").htmlFor = this._select.id;
    // Several cards have a model; by ear only the name tells them apart.
    this._part(".model-label").append(el("span", { class: "unseen" }, ` on ${id}`));
    this._why = this._part(".why");
    this._why.id = `why-${id}`;
    this._execute = this._part(".execute");
    this._execute.setAttribute("aria-describedby", this._why.id);
    say(this._execute, `Execute on ${id}`);
    this._stop = this._part(".row .stop");
    say(this._stop, "Stop");
    this._stop.setAttribute("aria-label", `Stop ${id}`);
    this._check = this._part("input");
    this._check.setAttribute("aria-label", `Compare ${id}`);

    this._execute.addEventListener("click", () => usable(this._execute) && acts.execute(id));
    this._stop.addEventListener("click", (event) => first(event) && acts.stop(id));
    this._check.addEventListener("change", () => acts.selected());
  }

  get model() {
    return this._select.value;
  }

  get selected() {
    return this._check.checked;
  }

  /** Shows what a look at the server found. Returns what is news of it, in words. */
  show(integration, reachable) {
    const { word, colour } = reachable
      ? (STATES[integration.state] ?? STATES.INTEGRATION_STATE_UNSPECIFIED)
      : { word: "Unknown", colour: "unknown" };
    const badge = this._part(".head .state");
    badge.dataset.state = colour;
    say(badge.querySelector(".word"), word);
    say(this._part(".kind"), integration.kind);
    const down = this._part(".down");
    say(down, sentence(integration.error));
    show(down, reachable && Boolean(integration.error));
    facts(this._part(".facts"), [
      [integration.endpoints.length > 1 ? "Endpoints" : "Endpoint", integration.endpoints.join(", ")],
      ["Default model", integration.default_model],
      ["Capabilities", integration.capabilities.join(", ")],
      ["Probe", integration.latency_ms ? `took ${time(integration.latency_ms)}` : ""],
    ]);
    this._default = integration.default_model;
    this.connected = reachable && integration.state === "INTEGRATION_STATE_UP";
    const news = this._state !== null && this._state !== word ? `${this.id}: ${word}` : "";
    this._state = word;
    return news;
  }

  /** Offers models. What was chosen stays chosen, also when it is listed no more. */
  offer(models) {
    const chosen = this._select.value;
    const offered = [["", this._default ? `Default – ${this._default}` : "Default"]];
    for (const model of models) offered.push([model.id, label(model)]);
    if (!offered.some(([id]) => id === chosen)) offered.push([chosen, `${chosen} – not listed now`]);
    const key = JSON.stringify(offered);
    if (this._offered === key) return;
    this._offered = key;
    this._select.replaceChildren(...offered.map(([value, text]) => el("option", { value }, text)));
    this._select.value = chosen;
  }

  /** Lets it be executed, or says why not. */
  ready(running, reachable) {
    const why = this.connected
      ? ""
      : !reachable
        ? "Cannot be executed: the server is not reachable."
        : this._state === STATES.INTEGRATION_STATE_STARTING.word
          ? "Cannot be executed yet: it is starting."
          : "Cannot be executed: it is not connected.";
    say(this._why, why);
    show(this._why, why !== "");
    enable(this._execute, this.connected);
    this._check.disabled = !this.connected && !this._check.checked;
    this._swap(running ? this._execute : this._stop, running ? this._stop : this._execute);
  }

  /** Has one button take another's place, and the focus with it. */
  _swap(gone, come) {
    const focused = document.activeElement === gone;
    show(come, true);
    if (focused) come.focus();
    show(gone, false);
  }
}

/** All cards. */
export class Cards {
  /** @param {object} acts `execute(id)`, `stop(id)`, `selected()` */
  constructor(acts) {
    this._acts = acts;
    this._cards = new Map();
    this._order = [];
    this._place = by("cards");
  }

  get(id) {
    return this._cards.get(id);
  }

  /** The integrations that are connected, in the order of the configuration. */
  get connected() {
    return this._ids((card) => card.connected);
  }

  get selected() {
    return this._ids((card) => card.connected && card.selected);
  }

  show(server, runs) {
    const reachable = server.reachable !== false;
    const ids = server.integrations.map(({ id }) => id);
    this._order = ids;
    for (const [id, card] of this._cards) {
      if (ids.includes(id)) continue;
      card.node.remove();
      this._cards.delete(id);
    }
    const news = server.integrations.map((integration, i) => {
      const { id } = integration;
      const card = this._cards.get(id) ?? new Card(id, this._acts);
      this._cards.set(id, card);
      // Only one that is out of place is moved: moving takes the focus.
      if (this._place.children[i] !== card.node) {
        this._place.insertBefore(card.node, this._place.children[i] ?? null);
      }
      return card.show(integration, reachable);
    });
    const told = news.filter(Boolean).join(". ");
    if (told && reachable) say(by("news"), told);
    say(by("cards-empty"), "None is configured.");
    show(by("cards-empty"), ids.length === 0);
    this.offer(server);
    this.ready(server, runs);
  }

  offer(server) {
    for (const [id, card] of this._cards) {
      card.offer(server.models.filter((model) => model.integration_id === id && canChat(model)));
    }
  }

  ready(server, runs) {
    for (const [id, card] of this._cards) card.ready(runs.isRunning(id), server.reachable !== false);
  }

  _ids(wanted) {
    return this._order.filter((id) => wanted(this._cards.get(id)));
  }
}

function label(model) {
  const about = [
    model.state === "MODEL_STATE_LOADED" ? "in memory" : "",
    model.context_length ? `${number(model.context_length)} tokens` : "",
  ].filter(Boolean);
  return about.length ? `${model.id} – ${about.join(", ")}` : model.id;
}
