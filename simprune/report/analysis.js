// Linked maps: pointing at a cell (mouse, touch or arrow keys) marks the same pair in every map of its group, and reads
// out its values.
"use strict";
const groups = JSON.parse(document.getElementById("data").textContent);

function format(value) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(Math.abs(value) >= 100 ? 1 : 3).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
}

function mark(map, at, rows, columns) {
  const left = Number(map.dataset.left), top = Number(map.dataset.top), cell = Number(map.dataset.cell);
  const x = left + at.column * cell, y = top + at.row * cell;
  const boxes = { across: [left, y, cell * columns.length, cell], down: [x, top, cell, cell * rows.length], spot: [x, y, cell, cell] };
  for (const [name, box] of Object.entries(boxes)) {
    const line = map.querySelector(`.${name}`);
    ["x", "y", "width", "height"].forEach((key, place) => line.setAttribute(key, box[place]));
    line.style.display = "";
  }
}

function read(readout, at, { rows, columns, similarity }) {
  const pair = document.createElement("p");
  pair.textContent = `${at.row + 1}  ${rows[at.row]}  ×  ${at.column + 1}  ${columns[at.column]}`;
  readout.replaceChildren(pair);
  for (const each of similarity) {
    const part = document.createElement("span"), value = document.createElement("b");
    value.textContent = format(each.values[at.row][at.column]);
    part.append(`${each.measure} `, value);
    if (each.low) part.append(` (${format(each.low[at.row][at.column])} to ${format(each.high[at.row][at.column])})`);
    if (each.null_mean) part.append(`, chance ${format(each.null_mean[at.row][at.column])}`);
    readout.append(part);
  }
}

for (const [name, group] of Object.entries(groups)) {
  const { rows, columns } = group, at = { row: 0, column: 0 };
  const maps = [...document.querySelectorAll(`svg.linked[data-group="${name}"]`)];
  const readout = document.getElementById(`readout-${name}`);

  const show = (row, column) => {
    at.row = Math.max(0, Math.min(rows.length - 1, row));
    at.column = Math.max(0, Math.min(columns.length - 1, column));
    maps.forEach(map => mark(map, at, rows, columns));
    read(readout, at, group);
    document.querySelectorAll("tr.pointed").forEach(line => line.classList.remove("pointed"));
    for (const point of name === "own" ? [at.row, at.column] : [at.row]) {
      document.querySelectorAll(`tr[data-point="${point}"]`).forEach(line => line.classList.add("pointed"));
    }
  };

  for (const map of maps) {
    for (const name of ["across", "down", "spot"]) {
      const line = document.createElementNS(map.namespaceURI, "rect");
      line.setAttribute("class", name);
      line.style.display = "none";
      map.append(line);
    }
    const find = event => {
      const box = map.getBoundingClientRect(), scale = map.viewBox.baseVal.width / box.width;
      const { left, top, cell } = map.dataset;
      const column = Math.floor(((event.clientX - box.left) * scale - left) / cell);
      const row = Math.floor(((event.clientY - box.top) * scale - top) / cell);
      if (row >= 0 && column >= 0 && row < rows.length && column < columns.length) show(row, column);
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
}
