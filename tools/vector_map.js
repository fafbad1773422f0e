// Comes nearer to a place, names what has room, and shows the neighbours of a word.
const map = document.querySelector(".map");
const about = document.querySelector(".about");
const find = document.querySelector(".find input");
const unsaid = about.textContent;
const words = [...map.querySelectorAll(".word")].map((mark) => {
  const [x, y] = mark.getAttribute("transform").match(/-?[\d.]+/g).map(Number);
  const text = mark.querySelector("text");
  const name = text.textContent;
  mark.classList.remove("hides"); // or it has no width
  const near = mark.dataset.near.split(",").filter(Boolean).map(Number);
  return { mark, x, y, name, near, width: text.getComputedTextLength() };
});
let scale = 1, left = 0, top_ = 0;

function draw() {
  const taken = [];
  for (const { mark, x, y, width } of words) {
    const [a, b] = [scale * x + left, scale * y + top_];
    mark.setAttribute("transform", `translate(${a.toFixed(1)},${b.toFixed(1)})`);
    const box = [a - 4, b - 7.5, a + 7 + width, b + 7.5];
    const meets = (o) => box[0] < o[2] && o[0] < box[2] && box[1] < o[3] && o[1] < box[3];
    const hides = taken.some(meets);
    mark.classList.toggle("hides", hides);
    if (!hides) taken.push(box);
  }
}

function at(event) {
  const point = new DOMPoint(event.clientX, event.clientY);
  return point.matrixTransform(map.getScreenCTM().inverse());
}

function zoom(factor, x, y) {
  const next = Math.min(Math.max(scale * factor, 1), 40);
  left = x - ((x - left) * next) / scale;
  top_ = y - ((y - top_) * next) / scale;
  scale = next;
  if (scale === 1) left = top_ = 0;
  draw();
}

function choose(word) {
  for (const { mark } of words) mark.classList.remove("on", "self");
  map.classList.toggle("chosen", Boolean(word));
  about.textContent = unsaid;
  if (!word) return;
  for (const one of [word, ...word.near.map((i) => words[i])]) one.mark.classList.add("on");
  word.mark.classList.add("self");
  const [name, ...near] = word.mark.querySelector("title").textContent.split("\n");
  about.textContent = `${name}: ${near.join(" · ")}`;
}

map.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { x, y } = at(event);
  zoom(Math.exp(-event.deltaY / 400), x, y);
}, { passive: false });

let from = null;
map.addEventListener("pointerdown", (event) => { from = at(event); });
addEventListener("pointerup", () => { from = null; });
map.addEventListener("pointermove", (event) => {
  if (!from) return;
  const to = at(event);
  left += to.x - from.x;
  top_ += to.y - from.y;
  from = to;
  draw();
});
map.addEventListener("mouseover", (event) => {
  const mark = event.target.closest(".word");
  choose(words.find((word) => word.mark === mark));
});
find.addEventListener("input", () => {
  const word = words.find(({ name }) => name === find.value);
  choose(word);
  if (!word) return;
  const { width, height } = map.viewBox.baseVal;
  scale = Math.max(scale, 3);
  left = width / 2 - scale * word.x;
  top_ = height / 2 - scale * word.y;
  draw();
});
document.querySelector(".find button").addEventListener("click", () => {
  find.value = "";
  choose();
  zoom(0, 0, 0);
});
draw();
