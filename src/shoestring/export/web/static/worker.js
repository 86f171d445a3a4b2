// Loads the model and writes answers, by transformers.js. Every file comes from this folder.

import {
  AutoModelForCausalLM, AutoTokenizer, InterruptableStoppingCriteria, TextStreamer, env,
} from "./lib/transformers.min.js";

const MOST_TOKENS = 512; // of an answer
const here = new URL("./", self.location.href);
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = here.pathname;
env.useBrowserCache = false; // what lies in the folder is what runs
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = {
  mjs: new URL("lib/ort.mjs", here).href,
  wasm: new URL("lib/ort.wasm", here).href,
};

const say = (kind, what) => self.postMessage({ kind, what });
const stopping = new InterruptableStoppingCriteria();
let settings, tokenizer, model;

async function graphics() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

async function load() {
  settings = await (await fetch(new URL("page.json", here))).json();
  const sizes = new Map();
  const progress_callback = ({ status, file, loaded, total }) => {
    if (status !== "progress" || !total) return;
    sizes.set(file, [loaded, total]);
    const sum = (part) => [...sizes.values()].reduce((all, size) => all + size[part], 0);
    say("progress", { loaded: sum(0), total: Math.max(sum(1), settings.bytes) });
  };
  tokenizer = await AutoTokenizer.from_pretrained("model");
  const open = (device) => AutoModelForCausalLM.from_pretrained("model", { device, progress_callback });
  // Products of bytes have no form for WebGPU: on the processor they are faster than going back and forth.
  let device = settings.type !== "int8" && (await graphics()) ? "webgpu" : "wasm";
  try {
    model = await open(device);
  } catch (error) {
    if (device === "wasm") throw error;
    console.warn(`WebGPU: ${error.message}`);
    model = await open((device = "wasm"));
  }
  // A step of WebAssembly does not give way to messages, such as the one that stops it: let one in before each.
  const turn = new MessageChannel();
  const forward = model.forward.bind(model);
  model.forward = async (inputs) => {
    await new Promise((go) => {
      turn.port1.onmessage = go;
      turn.port2.postMessage(null);
    });
    return forward(inputs);
  };
  say("ready", { name: settings.name, kind: settings.type, device, chat: settings.chat });
}

async function answer(messages) {
  const inputs = settings.chat
    ? tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true })
    : tokenizer(messages.map(({ content }) => content).join(""));
  const room = settings.context - inputs.input_ids.dims.at(-1);
  if (room < 1) return say("full", { context: settings.context });
  let [tokens, first, last] = [0, 0, 0];
  const streamer = new TextStreamer(tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (text) => say("text", { text }),
    token_callback_function: () => {
      last = performance.now();
      if (tokens++ === 0) first = last;
    },
  });
  stopping.reset();
  await model.generate({
    ...inputs, max_new_tokens: Math.min(room, MOST_TOKENS), streamer, stopping_criteria: stopping,
  });
  say("done", { tokens, perSecond: tokens > 1 ? ((tokens - 1) * 1000) / (last - first) : null });
}

self.onmessage = ({ data }) => {
  if (data.kind === "stop") stopping.interrupt();
  else answer(data.messages).catch((error) => say("failed", { message: error.message, loading: false }));
};
load().catch((error) => say("failed", { message: error.message, loading: true }));
