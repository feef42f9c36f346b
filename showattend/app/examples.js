element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", { number: button.dataset.number });
});
