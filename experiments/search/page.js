// Shows in every chart the point that the mouse is on.
const marks = new Map();
for (const mark of document.querySelectorAll("[data-p]")) {
  marks.set(mark.dataset.p, [...(marks.get(mark.dataset.p) ?? []), mark]);
}
const about = document.querySelector(".about");
const unsaid = about?.textContent;
let now;
addEventListener("mouseover", (event) => {
  const chosen = event.target.closest("[data-p], tr:has([data-p])");
  const mark = chosen?.matches("tr") ? chosen.querySelector("[data-p]") : chosen;
  const next = mark?.dataset.p;
  if (next === now) return;
  for (const old of marks.get(now) ?? []) old.classList.remove("on");
  for (const one of marks.get(next) ?? []) one.classList.add("on");
  document.body.classList.toggle("chosen", next !== undefined);
  if (about) {
    const title = marks.get(next)?.map((one) => one.querySelector("title")).find(Boolean);
    about.textContent = title ? title.textContent.replaceAll("\n", " · ") : unsaid;
  }
  now = next;
});
