// The page: what is typed, asked, stopped, asked again, kept.

import { answer, models } from "./api.js";
import { loadConversations, loadSettings, newConversation, saveConversations, saveSettings } from "./store.js";
import { button, said, turnView } from "./view.js";

const byId = (id) => document.getElementById(id);
const log = byId("log");
const question = byId("question");
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_tokens", "seed"];

const settings = loadSettings();
const conversations = loadConversations();
let known = []; // names of models
let current = conversations[0] ?? newConversation([null, null]);
let running = []; // AbortControllers of the answers that are being written
let views = []; // of the turns that are shown

// Asking

/** The messages behind which a panel's model is to answer turn `number`. */
function messagesFor(panel, number) {
  const told = settings.system ? [{ role: "system", content: settings.system }] : [];
  current.turns.slice(0, number + 1).forEach((turn, index) => {
    told.push({ role: "user", content: turn.question });
    const text = turn.answers[panel]?.text;
    if (index < number && text) {
      told.push({ role: "assistant", content: text });
    }
  });
  return told;
}

function asked() {
  return current.models.filter((name) => name !== null);
}

/** Have one model answer one turn, and show it as it comes. */
async function write(panel, number) {
  const conversation = current;
  const turn = conversation.turns[number];
  const view = views[number].answers[panel];
  const found = { text: "", reason: null, tokens: 0, seconds: 0, problem: null };
  const controller = new AbortController();
  const messages = messagesFor(panel, number);
  turn.answers[panel] = found;
  running.push(controller);
  view.show(found);
  let first = null;
  try {
    const body = { model: conversation.models[panel], messages, ...given() };
    for await (const chunk of answer(body, settings.key, controller.signal)) {
      const choice = chunk.choices[0];
      found.text += choice?.delta?.content ?? "";
      if (choice?.delta?.content) {
        first ??= performance.now();
        found.seconds = (performance.now() - first) / 1000;
      }
      found.reason = choice?.stop_reason ?? found.reason;
      found.tokens = chunk.usage?.completion_tokens ?? found.tokens;
      showAtEnd(() => view.show(found));
    }
  } catch (error) {
    if (controller.signal.aborted) {
      found.reason = "stopped";
    } else {
      found.problem = error.message;
    }
  }
  running = running.filter((one) => one !== controller);
  view.show(found);
  keep();
  showRunning();
  byId("status").textContent = found.problem ?? `${conversation.models[panel]} has answered. ${said(found)}`;
}

/** The settings that are not left empty. */
function given() {
  const filled = NUMBERS.filter((name) => Number.isFinite(settings[name]));
  return Object.fromEntries(filled.map((name) => [name, settings[name]]));
}

function ask(text) {
  current.turns.push({ question: text, answers: [] });
  current.title ||= text.slice(0, 60);
  if (!conversations.includes(current)) {
    conversations.unshift(current);
  }
  const number = current.turns.length - 1;
  show();
  byId("status").textContent = "Writing.";
  asked().forEach((_, panel) => write(panel, number));
  showRunning();
  log.scrollTop = log.scrollHeight;
}

function stop() {
  running.forEach((controller) => controller.abort());
}

// Showing

/** Do something that makes the log longer; whoever was at its end stays there. */
function showAtEnd(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) {
    requestAnimationFrame(() => requestAnimationFrame(() => (log.scrollTop = log.scrollHeight)));
  }
}

function show() {
  views = current.turns.map((turn, number) =>
    turnView(turn, asked(), {
      edit() {
        stop();
        question.value = turn.question;
        current.turns.length = number;
        show();
        keep();
        question.focus();
      },
      again(panel) {
        if (!running.length) {
          write(panel, number);
          showRunning();
        }
      },
    }),
  );
  log.replaceChildren(...views.map((view) => view.whole));
  current.turns.forEach((turn, number) => {
    views[number].answers.forEach((view, panel) => turn.answers[panel] && view.show(turn.answers[panel]));
  });
  byId("list").replaceChildren(...conversations.map(entry));
}

function entry(conversation) {
  const item = document.createElement("li");
  const open = button(conversation.title || "New conversation", `Open: ${conversation.title}`, () => {
    stop();
    current = conversation;
    choose();
    show();
    openMenu(false);
    question.focus();
  });
  open.setAttribute("aria-current", String(conversation === current));
  const remove = button("×", `Delete: ${conversation.title}`, () => {
    conversations.splice(conversations.indexOf(conversation), 1);
    if (conversation === current) {
      begin();
    }
    keep();
    show();
  });
  item.append(open, remove);
  return item;
}

function showRunning() {
  byId("stop").hidden = !running.length;
  byId("send").disabled = Boolean(running.length);
}

function tell(problem) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem ?? "";
}

function keep() {
  tell(saveConversations(conversations) ? null : "This browser has no room to keep the conversation.");
}

function begin() {
  stop();
  current = newConversation([...current.models]);
  show();
  question.focus();
}

// Models

function choose() {
  const first = known.includes(current.models[0]) ? current.models[0] : (known[0] ?? null);
  const second = known.includes(current.models[1]) ? current.models[1] : null;
  current.models = [first, second];
  byId("model-0").value = first;
  byId("compare").checked = second !== null;
  byId("second").hidden = second === null;
  byId("model-1").value = second ?? known.find((name) => name !== first) ?? first;
}

function chosen() {
  stop();
  current.models = [byId("model-0").value, byId("compare").checked ? byId("model-1").value : null];
  byId("second").hidden = !byId("compare").checked;
  show();
  keep();
}

async function learnModels() {
  try {
    known = (await models(settings.key)).map((one) => one.id);
    tell(null);
  } catch (error) {
    tell(`${error.message}. Settings takes an API key.`);
  }
  for (const id of ["model-0", "model-1"]) {
    byId(id).replaceChildren(...known.map((name) => new Option(name, name)));
  }
  choose();
  show();
}

// Settings

function applySettings() {
  if (settings.theme === "auto") {
    delete document.documentElement.dataset.theme;
  } else {
    document.documentElement.dataset.theme = settings.theme;
  }
  const fields = byId("settings").querySelector("form").elements;
  for (const name of [...NUMBERS, "system", "theme", "key"]) {
    fields[name].value = settings[name] ?? "";
  }
}

byId("settings").addEventListener("close", () => {
  const fields = byId("settings").querySelector("form").elements;
  const key = settings.key;
  for (const name of ["system", "theme", "key"]) {
    settings[name] = fields[name].value;
  }
  for (const name of NUMBERS) {
    settings[name] = fields[name].value === "" ? null : fields[name].valueAsNumber;
  }
  saveSettings(settings);
  applySettings();
  if (key !== settings.key) {
    learnModels();
  }
});

// What is pressed

function openMenu(open) {
  byId("conversations").classList.toggle("open", open);
  byId("menu").setAttribute("aria-expanded", String(open));
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (text && !running.length && current.models[0]) {
    question.value = "";
    ask(text);
  }
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("settings").open) {
    stop();
    openMenu(false);
  }
});
byId("stop").addEventListener("click", () => {
  stop();
  question.focus();
});
byId("new").addEventListener("click", () => {
  begin();
  openMenu(false);
});
byId("menu").addEventListener("click", () => openMenu(!byId("conversations").classList.contains("open")));
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
for (const id of ["model-0", "model-1", "compare"]) {
  byId(id).addEventListener("change", chosen);
}

applySettings();
show();
learnModels();
