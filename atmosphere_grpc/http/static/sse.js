// Server-sent events out of a response's body, wherever the network cuts it.

/**
 * The data of each event.
 *
 * A cut may go through a character, a line's end (\r\n) or a field's name, so nothing is read
 * before its line is whole. What follows the last blank line is no event and is left out, as the
 * standard has it.
 * @param {ReadableStream<Uint8Array>} body closed, and its connection with it, when this is left
 */
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder(); // drops a byte order mark, and keeps half a character
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const { lines, left } = split(rest, done);
      rest = left;
      for (const line of lines) {
        if (line !== "") {
          const said = dataOf(line);
          if (said !== null) data.push(said);
        } else if (data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    // On one that has ended or failed this changes nothing.
    reader.cancel().catch(() => {});
  }
}

/** Whole lines, and what is left. A \r at the very end is, until all is there: a \n may follow. */
function split(text, all) {
  const lines = text.split(all ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/);
  return { left: lines.pop(), lines };
}

function dataOf(line) {
  if (line === "data") return "";
  if (!line.startsWith("data:")) return null; // a comment, or a field that means nothing here
  return line.slice(line[5] === " " ? 6 : 5);
}
