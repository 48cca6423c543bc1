"use strict";
// Shows the values at the place that one points at. Without this the page reads as well.
for (const plot of document.querySelectorAll(".plot")) {
  const data = JSON.parse(plot.querySelector("script").textContent);
  const svg = plot.querySelector("svg"), pointer = plot.querySelector(".pointer"), tip = plot.querySelector(".tip");
  const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 5 }) + (data.unit ? " " + data.unit : "");
  const time = (s) => {
    const whole = Math.round(s), parts = [[Math.floor(whole / 3600), "h"], [Math.floor(whole / 60) % 60, "m"], [whole % 60, "s"]];
    return s < 60 ? s.toFixed(1) + "s" : parts.filter(([count]) => count).map(([count, unit]) => count + unit).join(" ");
  };
  // The last place that is not beyond x.
  const at = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (xs[middle] <= x) low = middle; else high = middle - 1; }
    return low;
  };
  const line = (name, value, colour) => {
    const row = document.createElement("div");
    if (colour !== undefined) { const key = document.createElement("i"); key.className = "key c" + colour; row.append(key); }
    const label = document.createElement("span"); label.textContent = name; row.append(label);
    if (value !== undefined) { const bold = document.createElement("b"); bold.textContent = value; row.append(bold); }
    return row;
  };
  const hide = () => { pointer.hidden = tip.hidden = true; };
  const show = (event) => {
    const box = svg.getBoundingClientRect(), whole = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const x = data.x[0] + share * (data.x[1] - data.x[0]);
    const rows = [];
    for (const curve of data.curves) {
      if (!curve.x.length || x < curve.x[0]) continue;
      const i = at(curve.x, x), low = curve.low ? curve.low[i] : curve.y[i], high = curve.high ? curve.high[i] : curve.y[i];
      const range = low < high ? number(low) + " to " + number(high) : number(curve.y[i]);
      rows.push(line(curve.name, range, curve.colour));
    }
    tip.replaceChildren(line(data.xKind === "time" ? time(x) : "step " + Math.round(x)), ...rows);
    pointer.hidden = tip.hidden = false;
    const left = box.left - whole.left + share * box.width;
    pointer.style.left = left + "px";
    tip.style.left = Math.max(0, Math.min(whole.width - tip.offsetWidth, left + (share > 0.5 ? -tip.offsetWidth - 10 : 10))) + "px";
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", hide);
}
