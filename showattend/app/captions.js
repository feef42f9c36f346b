// Runs when the captions enter the page; Gradio provides `element`, which holds them, and `watch`.
// The word under the pointer or with the focus shades the photo; else the one that was clicked; else none.

const words = () => [...element.querySelectorAll(".word")];
const focused = () => (element.contains(document.activeElement) ? document.activeElement.closest(".word") : null);
const pressed = () => element.querySelector('.word[aria-pressed="true"]');

function show(word) {
  const shade = document.querySelector("#image .shade");
  if (!shade) return;
  if (word) shade.style.backgroundImage = `url(${word.dataset.shade})`;
  shade.classList.toggle("on", Boolean(word));
  for (const other of words()) other.classList.toggle("shown", other === word);
}

function press(word) {
  for (const other of words()) other.setAttribute("aria-pressed", String(other === word));
}

element.addEventListener("mouseover", (event) => {
  const word = event.target.closest(".word");
  if (word) show(word);
});
element.addEventListener("mouseleave", () => show(focused() ?? pressed()));
element.addEventListener("focusin", (event) => show(event.target.closest(".word")));
element.addEventListener("focusout", () => show(focused() ?? pressed())); // the window may have lost the focus, not the word
element.addEventListener("click", (event) => {
  const word = event.target.closest(".word");
  if (!word) return;
  press(word === pressed() ? null : word);
  show(pressed());
});
element.addEventListener("keydown", (event) => {
  const word = event.target.closest(".word");
  if (!word) return;
  if (event.key === "Escape") {
    press(null);
    word.blur();
    return;
  }
  const line = [...word.closest(".caption").querySelectorAll(".word")];
  const at = line.indexOf(word);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: line.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = line[Math.min(Math.max(to, 0), line.length - 1)];
  for (const other of line) other.tabIndex = other === next ? 0 : -1; // Tab goes to the caption, arrows go within
  next.focus();
});

watch("value", () => {
  press(null);
  show(element.querySelector(".growing") ? words().at(-1) : null); // where it looks while it captions
});
