// Linked maps: pointing at a cell (mouse, touch or arrow keys) marks the same pair in every map and reads out its values.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const maps = [...document.querySelectorAll("svg.linked")];
const readout = document.getElementById("readout");
const at = { row: 0, column: 0 };

function format(value) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(Math.abs(value) >= 100 ? 1 : 3).replace("-", "−");
}

function show(row, column) {
  const rows = data.points, columns = data.points;
  at.row = Math.max(0, Math.min(rows.length - 1, row));
  at.column = Math.max(0, Math.min(columns.length - 1, column));
  for (const map of maps) {
    const { left, top, cell } = map.dataset, size = Number(cell);
    const x = Number(left) + at.column * size, y = Number(top) + at.row * size;
    for (const [name, box] of [["across", [left, y, size * columns.length, size]], ["down", [x, top, size, size * rows.length]], ["spot", [x, y, size, size]]]) {
      const mark = map.querySelector(`.${name}`);
      ["x", "y", "width", "height"].forEach((key, place) => mark.setAttribute(key, box[place]));
      mark.style.display = "";
    }
  }
  document.querySelectorAll("tr.pointed").forEach(line => line.classList.remove("pointed"));
  for (const point of new Set([at.row, at.column])) {
    document.querySelectorAll(`tr[data-point="${point}"]`).forEach(line => line.classList.add("pointed"));
  }
  readout.replaceChildren();
  const pair = document.createElement("p");
  pair.textContent = `${at.row + 1}  ${rows[at.row]}  ×  ${at.column + 1}  ${columns[at.column]}`;
  readout.append(pair);
  for (const each of data.similarity) {
    const part = document.createElement("span"), value = document.createElement("b");
    value.textContent = format(each.values[at.row][at.column]);
    part.append(`${each.measure} `, value);
    if (each.low) part.append(` (${format(each.low[at.row][at.column])} to ${format(each.high[at.row][at.column])})`);
    if (each.null_mean) part.append(`, chance ${format(each.null_mean[at.row][at.column])}`);
    readout.append(part);
  }
}

for (const map of maps) {
  const find = event => {
    const box = map.getBoundingClientRect(), scale = map.viewBox.baseVal.width / box.width;
    const { left, top, cell } = map.dataset;
    const column = Math.floor(((event.clientX - box.left) * scale - left) / cell);
    const row = Math.floor(((event.clientY - box.top) * scale - top) / cell);
    if (row >= 0 && column >= 0 && row < data.points.length && column < data.points.length) show(row, column);
  };
  map.addEventListener("pointermove", find);
  map.addEventListener("pointerdown", find);
  map.addEventListener("keydown", event => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    show(at.row + move[0], at.column + move[1]);
  });
}
