// What the server does for a link or a form, done in the page where all rows are here: nothing needs this script.
(() => {
  "use strict";
  // The page asks again every minute while it is seen, nobody types and nothing is unfolded, unless its box is unticked.
  const box = document.querySelector("#refresh"), kept = "cert-renew.refresh";
  box.checked = sessionStorage.getItem(kept) !== "no";
  box.parentNode.hidden = false;
  box.addEventListener("change", () => sessionStorage.setItem(kept, box.checked ? "yes" : "no"));
  setInterval(() => {
    const busy = document.hidden || document.activeElement?.form || document.querySelector("details[open]") || String(getSelection());
    if (box.checked && !busy) location.reload();
  }, 60_000);

  const table = document.querySelector("table"), form = document.forms[0], told = document.querySelector("output");
  if (!table || table.dataset.cut) return;
  const words = [...form.state.options].map((option) => option.value);
  const groups = [...table.tBodies], size = groups[0]?.rows.length;
  const all = groups.flatMap((group) => [...group.rows]);
  const text = new WeakMap();
  const textOf = (row) => text.get(row) ?? (text.set(row, row.textContent.toLowerCase()), text.get(row));
  const stateOf = (row) => row.dataset.s;
  const address = (change) => {
    const url = new URL(location);
    for (const [key, value] of Object.entries(change)) value ? url.searchParams.set(key, value) : url.searchParams.delete(key);
    history.replaceState(null, "", url);
  };

  const renewsOf = (row) => row.cells[4].textContent;
  // The command that renews what is shown: the names that the server would put there.
  const renew = document.querySelector("#renew"), { begin, end, most } = renew.dataset;
  const name = () => {
    const asked = all.filter((row) => !row.hidden && renewsOf(row) !== "never" && !["held", "blocked"].includes(stateOf(row)) && !("y" in row.dataset));
    const few = asked.length > 0 && asked.length <= most;
    renew.textContent = few ? begin + asked.map((row) => row.cells[0].querySelector("a").textContent).join(" ") + " " + end : "";
    renew.hidden = !few;
    renew.nextElementSibling.hidden = few;
  };
  const filter = () => {
    const asked = form.q.value.trim().toLowerCase(), state = form.state.value;
    let shown = 0;
    for (const row of all) {
      const fits = (!state || (state === "trouble" ? row.className === "x" : stateOf(row) === state)) && (!asked || textOf(row).includes(asked));
      row.hidden = !fits;
      shown += fits;
    }
    told.value = `${shown} of ${all.length} shown`;
    name();
    address({ q: form.q.value.trim(), state });
  };
  if (!table.dataset.part) {
    let soon;
    form.q.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(filter, 80); });
    form.state.addEventListener("change", filter);
    form.addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  } else {
    form.state.addEventListener("change", () => form.requestSubmit());
  }

  const key = (row, column) => {
    const cell = row.cells[column];
    // Dates sort as they are written, now before all of them; what has none comes last.
    if (column === 4) return { now: "", never: "~" }[renewsOf(row)] ?? renewsOf(row);
    if (column === 1) return String(words.indexOf(stateOf(row))).padStart(2, "0");
    return cell.firstChild ? cell.firstChild.textContent : "~";
  };
  document.querySelector("thead").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const head = link.closest("th"), down = head.ariaSort === "ascending", column = head.cellIndex;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
    const rows = all.map((row) => [key(row, column), row]);
    rows.sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0) * (down ? -1 : 1));
    groups.forEach((group, at) => group.append(...rows.slice(at * size, (at + 1) * size).map(([, row]) => row)));
    address({ sort: (down ? "-" : "") + head.dataset.sort });
  });
})();
