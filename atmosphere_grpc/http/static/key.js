// The API key: asked for when the server wants one, and held in memory only.

import { hasKey, onDenied, useKey } from "/static/api.js";
import { by } from "/static/dom.js";
import { notice, unnotice } from "/static/notice.js";

/**
 * Has the key asked for and used.
 * @param {function(): void} changed called when there is another key
 * @returns what to call when a look at the server succeeds
 */
export function keyEntry(changed) {
  const box = by("key");
  const field = by("key-field");
  let asking = false;
  let given = false;
  let wrote = false;

  document.addEventListener("input", (event) => {
    wrote ||= event.target !== field;
  });

  by("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(field.value);
    unnotice(true);
    asking = false;
    given = true;
    changed();
  });

  onDenied((failure, asked) => {
    notice(words(failure), asked);
    box.open = true;
    // A look at the server that fails must not draw anybody away from what they write.
    if (asked || (!asking && !wrote)) field.focus();
    asking = true;
    given = false;
  });

  return () => {
    asking = false;
    if (!given) return;
    given = false;
    const here = box.contains(document.activeElement);
    box.open = false;
    if (here) by("prompt").focus();
  };
}

function words(failure) {
  if (failure.status === 401) {
    return hasKey()
      ? "The server does not accept this API key. Give another one."
      : "The server asks who calls. Give an API key.";
  }
  if (failure.reason === "PERMISSION_DENIED") {
    return "This caller may not do that. Give another API key, or ask whoever runs the server.";
  }
  return failure.message;
}
