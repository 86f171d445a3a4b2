// The conversation as one sees it. The model itself is in a worker, so that the page stays alive while it computes.

const find = (id) => document.getElementById(id);
const [talk, form, text, send, stop, fresh] = ["talk", "form", "text", "send", "stop", "fresh"].map(find);
const [status, progress] = ["status", "progress"].map(find);
const worker = new Worker("worker.js", { type: "module" });
let messages = [];
let answer = null; // the paragraph that is being written
let about = ""; // what runs where

function show(kind, content) {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = content;
  talk.append(line);
  talk.scrollTop = talk.scrollHeight;
  return line;
}

function busy(yes) {
  send.disabled = text.disabled = fresh.disabled = yes;
  send.hidden = yes && answer !== null;
  stop.hidden = !send.hidden;
  if (!yes) text.focus();
}

function finish() {
  if (answer !== null) messages.push({ role: "assistant", content: answer.textContent });
  answer = null;
  busy(false);
}

const heard = {
  progress({ loaded, total }) {
    progress.value = total > 0 ? loaded / total : 0;
    status.textContent = `Loading the model: ${(loaded / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`;
  },
  ready({ name, kind, device, chat }) {
    about = `${kind} on ${device === "webgpu" ? "the graphics processor (WebGPU)" : "the processor (WebAssembly)"}`;
    find("name").textContent = document.title = name;
    progress.hidden = true;
    status.textContent = `Ready: ${about}`;
    if (!chat) show("note", "This model was not taught to chat: it goes on with what you write.");
    busy(false);
  },
  text({ text: more }) {
    if (answer === null) return;
    answer.textContent += more;
    talk.scrollTop = talk.scrollHeight;
  },
  done({ tokens, perSecond }) {
    const speed = perSecond === null ? "" : `, ${perSecond.toFixed(1)} tokens/s`;
    status.textContent = `${tokens} tokens${speed}: ${about}`;
    finish();
  },
  full({ context }) {
    answer?.remove();
    answer = null;
    messages.pop();
    show("note", `The conversation is longer than the model's ${context} tokens: begin a new one.`);
    busy(false);
  },
  failed({ message, loading }) {
    show("note", message);
    status.textContent = loading ? "The model could not be loaded" : "The answer broke off";
    progress.hidden = true;
    if (!loading) finish();
  },
};

worker.onmessage = ({ data }) => heard[data.kind](data.what);
worker.onerror = (event) => heard.failed({ message: event.message ?? "The worker could not be started.", loading: true });

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = text.value.trim();
  if (content === "" || send.disabled) return;
  text.value = "";
  messages.push({ role: "user", content });
  show("user", content);
  answer = show("assistant", "");
  busy(true);
  worker.postMessage({ kind: "answer", messages });
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stop.addEventListener("click", () => worker.postMessage({ kind: "stop" }));
fresh.addEventListener("click", () => {
  messages = [];
  talk.replaceChildren();
  text.focus();
});
