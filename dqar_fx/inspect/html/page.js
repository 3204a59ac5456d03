"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const make = (tag, classes, text) => {
    const element = document.createElement(tag);
    if (classes) element.className = classes;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  // ---- cells: where they stand, and what they say ------------------------------------------

  const place = (cell) => ({
    stream: Number(cell.closest("table").dataset.stream),
    site: cell.parentNode.sectionRowIndex,
    step: cell.cellIndex - 1,
  });
  const tell = ({ stream, site, step }) => {
    const known = data.streams[stream];
    const [text] = known.cells[site][step];
    return `step ${step}, site ${site} (${known.sites[site]}): ${data.texts[text]}`;
  };

  const tip = find("tip");
  const showTip = (cell) => {
    tip.textContent = tell(place(cell));
    tip.hidden = false;
    const box = cell.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${below ? box.bottom + 6 : box.top - 6 - tip.offsetHeight}px`;
  };
  const hideTip = () => { tip.hidden = true; };

  // ---- a cell's row, and the graph of a block in it ----------------------------------------

  const picker = find("block");
  let row = null;

  const showCell = (cell) => {
    const { stream, site, step } = place(cell);
    const known = data.streams[stream];
    document.querySelector(".heat .picked")?.classList.remove("picked");
    cell.classList.add("picked");
    find("detail").hidden = false;
    find("reason").textContent = tell({ stream, site, step });
    const number = known.rowOfStep[step];
    row = number === null ? null : known.rows[number];
    showRow(number, step, known.cells[site][step][1]);
    if (!row) return;
    const own = data.columns.findIndex((columns) => columns.includes(site));
    picker.value = String(Math.max(own, 0));
    find("after-title").textContent = `row ${number} (step ${step})`;
    showBlock();
  };

  const showRow = (number, step, source) => {
    const facts = [];
    if (source !== null) facts.push(["reads", `what step ${source} kept, ${step - source} steps old`]);
    if (row) {
      facts.push(["row", `${number}, at steps ${row.steps}`], ["time", row.ms], ["saves", row.saved]);
    }
    find("row-facts").replaceChildren(...facts.map(([name, value]) => {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      return pair;
    }));
    find("delta").replaceChildren(...Object.entries(row ? row.delta : {}).map(([name, count]) => {
      const sign = count > 0 ? "+" : "\u2212";
      return make("li", count > 0 ? "more" : "less", `${name} ${sign}${Math.abs(count)}`);
    }));
    picker.replaceChildren(...(row ? row.diffs : []).map((diff, call) => {
      const option = make("option", "", `${data.calls[call]}: ${data.diffs[diff].said}`);
      option.value = String(call);
      return option;
    }));
  };

  const graph = find("graph");
  let shown = [];
  const showBlock = () => {
    const diff = data.diffs[row.diffs[Number(picker.value)]];
    shown = diff.lines;
    find("line").textContent = "";
    find("said").textContent = `saves ${diff.saved}`;
    const lines = diff.lines.map(makeLine);
    graph.replaceChildren(drawArcs(diff.lines), ...lines);
    graph.removeAttribute("aria-activedescendant");
  };

  const makeLine = (line, number) => {
    const item = make("li");
    item.id = `line-${number}`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    const slot = line.k ? " slot" : "";
    const gone = line.s === "-" || line.s === "~" ? " gone" : "";
    const came = { "+": " came", "~": " rewired" }[line.s] || "";
    const before = make("span", `b${line.b && line.s !== "~" ? gone : ""}${line.b ? slot : ""}`, line.b || "");
    const text = line.s === "=" ? line.b : line.a || "";
    const after = make("span", `a${came}${text ? slot : ""}`, text);
    if (line.m) item.title = line.m;
    item.append(before, after);
    return item;
  };

  // one arc from each value to each line that reads it; nearer ones bend less
  const HIGH = 20;
  const drawArcs = (lines) => {
    const width = window.matchMedia("(max-width: 50rem)").matches ? 40 : 64;
    const svg = draw("svg", { height: lines.length * HIGH, "aria-hidden": "true" });
    const farthest = Math.log2(lines.length + 1);
    lines.forEach((line, to) => (line.i || []).forEach((from) => {
      const depth = (width - 14) * Math.log2(to - from + 1) / farthest;
      const [y, end, x] = [from * HIGH + 10, to * HIGH + 10, width - 8];
      const bend = Math.max(4, depth);
      const path = `M${x} ${y} C${x - bend} ${y}, ${x - bend} ${end}, ${x} ${end}`;
      const gone = line.s === "-" || lines[from].s === "-";
      svg.append(draw("path", { d: path, class: gone ? "gone" : "", "data-from": from, "data-to": to }));
    }));
    lines.forEach((line, number) => {
      const [x, y] = [width - 8, number * HIGH + 10];
      svg.append(line.k
        ? draw("rect", { x: x - 4, y: y - 5, width: 9, height: 10 })
        : draw("circle", { cx: x, cy: y, r: 2.5 }));
    });
    return svg;
  };

  const lightLine = (number) => {
    const lines = [...graph.querySelectorAll("li")];
    if (!lines[number]) return;
    lines.forEach((line) => {
      line.classList.remove("at", "in", "out");
      line.setAttribute("aria-selected", "false");
    });
    graph.querySelectorAll("path").forEach((path) => {
      const [from, to] = [Number(path.dataset.from), Number(path.dataset.to)];
      path.classList.toggle("lit", from === number || to === number);
      if (to === number) lines[from].classList.add("in");
      if (from === number) lines[to].classList.add("out");
    });
    const { b, a, s, m } = shown[number];
    const texts = s === "~" ? `${a} (before: ${b})` : a || b;
    find("line").textContent = m ? `${texts} \u2014 ${m}` : texts;
    lines[number].classList.add("at");
    lines[number].setAttribute("aria-selected", "true");
    graph.setAttribute("aria-activedescendant", lines[number].id);
  };

  // ---- pointer and keyboard ----------------------------------------------------------------

  const isCell = (target) => target.matches?.(".heat tbody td");
  const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

  const neighbour = (cell, key) => {
    const cells = [...cell.parentNode.querySelectorAll("td")];
    if (key === "Home") return cells[0];
    if (key === "End") return cells[cells.length - 1];
    const [down, right] = STEPS[key];
    const target = cell.closest("tbody").rows[cell.parentNode.sectionRowIndex + down];
    const index = cell.cellIndex + right;
    return target && index > 0 ? target.cells[index] : undefined;
  };

  document.querySelectorAll(".heat").forEach((table) => {
    table.tBodies[0].querySelectorAll("td").forEach((cell) => { cell.tabIndex = -1; });
    table.tBodies[0].rows[0].cells[1].tabIndex = 0;
    table.addEventListener("mouseover", (event) => isCell(event.target) ? showTip(event.target) : hideTip());
    table.addEventListener("mouseleave", hideTip);
    table.addEventListener("focusin", (event) => {
      if (!isCell(event.target)) return;
      table.querySelector('tbody td[tabindex="0"]').tabIndex = -1;
      event.target.tabIndex = 0;
      showTip(event.target);
    });
    table.addEventListener("focusout", hideTip);
    table.addEventListener("click", (event) => { if (isCell(event.target)) showCell(event.target); });
    table.addEventListener("keydown", (event) => {
      if (!isCell(event.target)) return;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        showCell(event.target);
        hideTip();
        find("cell-title").scrollIntoView({ block: "nearest" });
      } else if (event.key === "Escape") {
        hideTip();
      } else if (event.key in STEPS || event.key === "Home" || event.key === "End") {
        event.preventDefault();
        neighbour(event.target, event.key)?.focus();
      }
    });
  });
  window.addEventListener("scroll", hideTip, { passive: true });

  picker.addEventListener("change", showBlock);
  graph.addEventListener("mouseover", (event) => {
    const line = event.target.closest("li");
    if (line) lightLine([...graph.querySelectorAll("li")].indexOf(line));
  });
  graph.addEventListener("focus", () => { if (!graph.querySelector(".at")) lightLine(0); });
  graph.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const lines = [...graph.querySelectorAll("li")];
    lightLine(lines.findIndex((line) => line.classList.contains("at")) + move);
    graph.querySelector(".at")?.scrollIntoView({ block: "nearest" });
  });
  window.matchMedia("(max-width: 50rem)").addEventListener("change", () => { if (row) showBlock(); });

  const first = document.querySelector(".heat tbody .R, .heat tbody .F") || document.querySelector(".heat tbody td");
  showCell(first);
})();
