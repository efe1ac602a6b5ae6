// The notice at the top of the page: what stands in the way, until it does no more.

import { by, say, show } from "/static/dom.js";

let lasting = false;

/**
 * Says what stands in the way.
 * @param {boolean} asked whether it is of what a person did: then the next look at the server, which
 *   may well succeed, does not take it away
 */
export function notice(text, asked) {
  lasting = asked;
  say(by("trouble"), text);
  show(by("trouble"), true);
}

/** Takes the notice away; one that lasts only where something was done about it. */
export function unnotice(done = false) {
  if (lasting && !done) return;
  lasting = false;
  show(by("trouble"), false);
}
