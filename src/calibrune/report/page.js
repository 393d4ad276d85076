// What a page can do: draw its charts in the reader's colours, filter and sort its tables. It asks nobody for anything.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const draw = async () => {
    for (const box of document.querySelectorAll(".chart")) {
      const config = read("theme")[dark.matches ? "dark" : "light"];
      // `ast`: expressions are interpreted, so that the page may forbid `eval`
      const options = { mode: "vega-lite", renderer: "svg", ast: true, actions: false, config };
      const wide = { width: "container", autosize: { type: "fit-x", contains: "padding" } };
      const { view } = await vegaEmbed(box, { ...read(box.dataset.spec), ...wide }, options);
      box.closest("figure").querySelectorAll("[data-save]").forEach((link) => {
        link.onclick = async (event) => {
          event.preventDefault();
          const file = document.createElement("a");
          file.href = await view.toImageURL(link.dataset.save, 2);
          file.download = `${box.dataset.spec}.${link.dataset.save}`;
          file.click();
        };
      });
    }
    document.documentElement.dataset.drawn = "yes";
  };

  const number = (text) => {
    const found = text.replaceAll(",", "").replace("−", "-").match(/^[-+]?\d[\d.]*(e[-+]?\d+)?/);
    return found ? parseFloat(found[0]) : null;
  };

  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x === null ? 1 : -1; // what has no number stands last
    return a.localeCompare(b);
  };

  const explore = (figure) => {
    const rows = [...figure.querySelectorAll("tbody tr")];
    const text = (row, i) => row.cells[i].textContent.trim();
    const [search, count] = [figure.querySelector("input"), figure.querySelector("output")];
    const lists = [...figure.querySelectorAll("select")];
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => {
        const said = row.textContent.toLowerCase();
        const chosen = lists.every((list) => !list.value || text(row, list.dataset.column) === list.value);
        row.hidden = !(chosen && words.every((word) => said.includes(word)));
      });
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    };
    [search, ...lists].forEach((one) => one.addEventListener("input", filter));
    figure.querySelectorAll("th").forEach((head, i) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        figure.querySelectorAll("th").forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        rows.sort((a, b) => (down ? -1 : 1) * compare(text(a, i), text(b, i)));
        rows[0]?.parentNode.append(...rows);
      });
    });
    filter();
  };

  const unfold = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.tagName === "DETAILS") target.open = true;
    target?.scrollIntoView();
  };

  document.querySelectorAll(".explorer").forEach(explore);
  addEventListener("hashchange", unfold);
  unfold();
  if (document.querySelector(".chart")) {
    draw();
    dark.addEventListener("change", draw);
  }
})();
