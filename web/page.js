// The page: takes an image, shows its caption, and highlights where the network looked before each word.

import { drawLight } from "./attention.js";

const BEAMS = [1, 2, 3, 4, 5, 10];

const element = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
let settings; // captioner.json, once the model is there
let image; // the file that is shown
let asked = 0; // the number of the last request to the worker: answers to earlier ones are ignored

// The model

const answers = {
  progress({ loaded, total }) {
    const size = (bytes) => Math.round(bytes / 1e6);
    showLoading(loaded < total ? `Downloading the model: ${size(loaded)} of ${size(total)} MB` : "Starting the model …");
    element.progress.value = loaded / total;
  },
  ready(answer) {
    settings = answer.settings;
    element.loading.hidden = true;
    const usual = settings.generation.num_beams;
    for (const number of [...new Set([...BEAMS, usual])].sort((one, other) => one - other)) {
      element.beams.append(new Option(number === 1 ? "1 (greedy)" : number, number, false, number === usual));
    }
    element.search.hidden = false;
    if (image) ask(); // to show that it is being captioned
  },
  unusable({ message }) {
    clear();
    element.loading.hidden = element.chooser.hidden = true; // no image can be captioned, so none is accepted
    showError(message);
  },
  caption({ number, text, words, grids }) {
    if (number === asked) showCaption(text, words, grids);
  },
  failure({ number, message }) {
    if (number !== asked) return;
    clear();
    showError(message);
  },
};
worker.onmessage = ({ data }) => answers[data.kind](data);
worker.onerror = () => answers.unusable({ message: "The page's own files are incomplete on the server: build it again." });
showLoading("Downloading the model …");

function showLoading(text) {
  element.loading.firstElementChild.textContent = text;
}

function showError(text) {
  element.error.textContent = text;
}

// The image

function take(file) {
  if (!file || element.chooser.hidden) return;
  image = file;
  URL.revokeObjectURL(element.image.src);
  element.image.src = URL.createObjectURL(file);
  ask();
}

function ask() {
  asked += 1;
  showError("");
  showLight(null);
  element.announcement.textContent = "";
  element.hint.hidden = true;
  element.figure.hidden = false;
  element.image.alt = "Your photo";
  element.caption.className = "waiting";
  element.caption.replaceChildren(settings ? "Looking …" : "Waiting for the model …");
  document.body.classList.add("has-image");
  if (settings) worker.postMessage({ number: asked, image, numBeams: Number(element.beams.value) });
}

function clear() {
  image = null;
  element.figure.hidden = true;
  element.caption.replaceChildren();
  document.body.classList.remove("has-image");
}

element.file.addEventListener("change", () => {
  take(element.file.files[0]);
  element.file.value = ""; // so that the same image can be chosen again
});
element.beams.addEventListener("change", () => image && ask());
addEventListener("paste", ({ clipboardData }) => take(clipboardData.files[0]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});

// The caption: highlights the image for the word that is hovered or focused, else for the one that was pressed

function showCaption(text, words, grids) {
  const buttons = words.map((word, number) => {
    const button = document.createElement("button");
    button.textContent = word;
    button.setAttribute("aria-pressed", "false");
    button.grid = grids[number];
    return button;
  });
  element.caption.className = "";
  element.caption.replaceChildren(...buttons.flatMap((button) => [" ", button]));
  element.image.alt = text || "Your photo";
  element.announcement.textContent = text ? `${text}.` : "The network generated no caption for this photo.";
  element.hint.hidden = !text;
}

function showLight(word) {
  const { rows, columns } = settings?.attention_grid ?? {};
  if (word) drawLight(element.light, word.grid, rows, columns);
  element.light.classList.toggle("on", Boolean(word));
  for (const other of element.caption.children) other.classList.toggle("shown", other === word);
}

const wordOf = ({ target }) => target.closest("button");
const focused = () => element.caption.querySelector("button:focus-visible");
const pressed = () => element.caption.querySelector('[aria-pressed="true"]');
function press(word) {
  for (const other of element.caption.children) other.setAttribute("aria-pressed", String(other === word));
}

element.caption.addEventListener("mouseover", (event) => wordOf(event) && showLight(wordOf(event)));
element.caption.addEventListener("mouseleave", () => showLight(focused() ?? pressed()));
element.caption.addEventListener("focusin", (event) => wordOf(event).matches(":focus-visible") && showLight(wordOf(event)));
element.caption.addEventListener("focusout", ({ relatedTarget }) => {
  if (!element.caption.contains(relatedTarget)) showLight(pressed());
});
element.caption.addEventListener("click", (event) => {
  const word = wordOf(event);
  if (!word) return;
  press(word === pressed() ? null : word);
  showLight(pressed());
});
