// Stands for the script that draws Colab's tables, at the same address.
window.createDataTable = ({ data, columns }) => {
  const table = document.createElement("table");
  table.className = "colab-data-table";
  table.createTHead().insertRow().append(...columns.map(([kind, name]) => `${name} (${kind}) `));
  for (const row of data) for (const cell of (table.append(document.createElement("tr")), row)) {
    table.lastChild.append(Object.assign(document.createElement("td"), { textContent: cell?.f ?? cell }));
  }
  document.body.append(table);
};
