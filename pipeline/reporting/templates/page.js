const sides = ["left", "right"].map(side => document.querySelector(`select[data-side=${side}]`));
const sliders = [...document.querySelectorAll(".slider")];
for (const slider of sliders) {
  const input = slider.querySelector("input");
  input.addEventListener("input", () => slider.style.setProperty("--at", input.value + "%"));
}
function choose() {
  for (const slider of sliders) {
    const versions = JSON.parse(slider.querySelector("script").textContent);
    sides.forEach((select, i) => {
      slider.querySelectorAll("img")[i].src = versions[select.value];
      slider.querySelectorAll(".tag")[i].textContent = select.value;
    });
  }
}
if (sliders.length) {
  sides.forEach(select => select.addEventListener("change", choose));
  choose();
}
for (const button of document.querySelectorAll(".tabs button")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll(".tabs button")) other.setAttribute("aria-pressed", other === button);
    for (const slider of sliders) slider.hidden = slider.dataset.image !== button.dataset.image;
  });
}
