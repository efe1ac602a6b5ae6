// Makes elements. Text is set as text, never as markup: it may come from a backend or its models.

/**
 * An element with attributes and children; a child that is a string becomes text.
 * @param {string} tag
 * @param {Object<string, string>} attributes
 * @param {...(Node|string|null|undefined)} children left out where there is none
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The element of an id, which the page has. */
export const by = (id) => document.getElementById(id);

/** A copy of what a template holds. */
export const copy = (id) => by(id).content.firstElementChild.cloneNode(true);

/** Sets a text only where it differs: what is unchanged keeps a reader's selection. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Shows an element, or hides it. */
export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

/**
 * Lets a button be used or not. It can be reached by keyboard either way, so that whoever reads the
 * page by ear learns why not; what it does must ask `usable`.
 */
export function enable(button, on) {
  if (on) button.removeAttribute("aria-disabled");
  else if (usable(button)) button.setAttribute("aria-disabled", "true");
}

export const usable = (button) => !button.hasAttribute("aria-disabled");

/**
 * Whether a click is not the second of a double click, which was meant for the button that has made
 * place for this one.
 */
export const first = (click) => click.detail < 2;

/** Terms and what they are, as a list that is changed only where it differs. */
export function facts(list, pairs) {
  const told = pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const key = JSON.stringify(told);
  if (list.dataset.told === key) return;
  list.dataset.told = key;
  list.replaceChildren(
    ...told.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, String(value)))),
  );
}
