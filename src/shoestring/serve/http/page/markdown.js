// Markdown as models write it, to elements. Whatever a model says is text: elements are made one by one, never parsed
// from it, so nothing in it can run. Pictures are shown as links, and links lead to http, https and mailto alone.

const LINK = /^(https?:|mailto:)/i;
const DEEPEST = 8; // of quotes, lists and emphasis inside each other
const INLINE =
  /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[\s\S]*?[^\s])?)\*\*|__([^\s_](?:[\s\S]*?[^\s])?)__|\*([^\s*](?:[^*]*[^\s*])?)\*|!?\[([^\]]*)\]\(\s*<?([^\s)>]+)>?(?:\s+"[^"]*")?\s*\)|<?(https?:\/\/[^\s<>"')\]]+)>?/;

/** Puts what `text` means into `parent`, instead of what is there. */
export function render(parent, text) {
  parent.replaceChildren(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/.exec(line);
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trimStart().startsWith(fence[1])) {
        end += 1;
      }
      found.push(code(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
    } else if (heading) {
      found.push(element(`h${Math.min(heading[1].length + 2, 6)}`, inline(heading[2])));
      at += 1;
    } else if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) {
      found.push(element("hr"));
      at += 1;
    } else if (/^\s{0,3}>/.test(line) && depth < DEEPEST) {
      const end = endOf(lines, at, (one) => /^\s{0,3}>/.test(one));
      const inner = lines.slice(at, end).map((one) => one.replace(/^\s{0,3}> ?/, ""));
      found.push(element("blockquote", blocks(inner, depth + 1)));
      at = end;
    } else if (marker(line) && depth < DEEPEST) {
      const end = endOf(lines, at, (one, number) => marker(one) || /^\s{2,}\S/.test(one) || blankInside(lines, number));
      found.push(list(lines.slice(at, end), depth));
      at = end;
    } else if (isTable(lines, at)) {
      const end = endOf(lines, at, (one) => one.includes("|"));
      found.push(table(lines.slice(at, end)));
      at = end;
    } else {
      const end = endOf(lines, at, (one, number) => number === at || (one.trim() && !begins(lines, number, depth)));
      found.push(element("p", inline(lines.slice(at, end).join("\n"))));
      at = end;
    }
  }
  return found;
}

function endOf(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end], end)) {
    end += 1;
  }
  return Math.max(end, at + 1);
}

/** Whether another kind of block begins here. */
function begins(lines, at, depth) {
  const line = lines[at];
  return /^\s{0,3}(`{3,}|~{3,}|#{1,6}\s)/.test(line) || (depth < DEEPEST && (/^\s{0,3}>/.test(line) || marker(line)));
}

function marker(line) {
  return /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/.exec(line);
}

function blankInside(lines, at) {
  return !lines[at].trim() && at + 1 < lines.length && /^\s{2,}\S/.test(lines[at + 1]);
}

function list(lines, depth) {
  const first = marker(lines[0]);
  const ordered = /\d/.test(first[2]);
  const made = element(ordered ? "ol" : "ul");
  if (ordered) {
    made.start = parseInt(first[2], 10);
  }
  const indent = first[1].length;
  let item = [];
  const close = () => {
    if (item.length) {
      const inner = blocks(item, depth + 1);
      made.append(element("li", inner.length === 1 && inner[0].tagName === "P" ? [...inner[0].childNodes] : inner));
    }
  };
  for (const line of lines) {
    const found = marker(line);
    if (found && found[1].length <= indent + 1) {
      close();
      item = [found[3]];
    } else {
      item.push(line.slice(Math.min(indent + 2, line.length - line.trimStart().length)));
    }
  }
  close();
  return made;
}

function isTable(lines, at) {
  return lines[at].includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[at + 1] ?? "");
}

function table(lines) {
  const rows = lines.filter((_, number) => number !== 1).map((line) => line.trim().replace(/^\||\|$/g, "").split("|"));
  const made = rows.map((cells, number) =>
    element("tr", cells.map((cell) => element(number ? "td" : "th", inline(cell.trim())))),
  );
  return element("table", [element("thead", [made[0]]), element("tbody", made.slice(1))]);
}

function code(text, language) {
  const pre = element("pre", [element("code", [text])]);
  pre.tabIndex = 0; // it may be wider than the page
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", language ? `code, ${language}` : "code");
  const made = element("div", [pre, copyButton(() => text, pre, "Copy this code")]);
  made.className = "code";
  return made;
}

/** A button that copies what `text()` gives, or where a browser forbids that, selects `shown`. */
export function copyButton(text, shown, description) {
  const made = element("button", ["Copy"]);
  made.type = "button";
  made.setAttribute("aria-label", description);
  made.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      made.textContent = "Copied";
    } catch {
      // Browsers let only pages of this machine, or over https, write there.
      getSelection().selectAllChildren(shown);
      made.textContent = "Selected";
    }
    setTimeout(() => (made.textContent = "Copy"), 2000);
  });
  return made;
}

function inline(text, depth = 0) {
  const found = [];
  let rest = text;
  for (let match = INLINE.exec(rest); match && depth < DEEPEST; match = INLINE.exec(rest)) {
    found.push(...plain(rest.slice(0, match.index)));
    const [whole, ticks, inside, strong, strong2, emphasis, label, target, address] = match;
    if (ticks) {
      found.push(element("code", [inside]));
    } else if (strong ?? strong2) {
      found.push(element("strong", inline(strong ?? strong2, depth + 1)));
    } else if (emphasis) {
      found.push(element("em", inline(emphasis, depth + 1)));
    } else {
      found.push(link(label || target || address, target ?? address, whole));
    }
    rest = rest.slice(match.index + whole.length);
  }
  return [...found, ...plain(rest)];
}

/** A link where it leads to the web; else what was written. */
function link(label, target, whole) {
  if (!LINK.test(target)) {
    return document.createTextNode(whole);
  }
  const made = element("a", [label]);
  made.href = target;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}

/** Lines that end in two spaces are broken there. */
function plain(text) {
  return text
    .split(/ {2,}\n/)
    .flatMap((part, number) => (number ? [element("br"), part] : [part]))
    .filter((part) => part !== "");
}

function element(name, children = []) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
