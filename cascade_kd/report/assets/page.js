const drawings = JSON.parse(document.getElementById("drawings").textContent);
for (const box of document.querySelectorAll(".chart")) {
  const options = { config: drawings.config, renderer: "svg", actions: false };
  vegaEmbed(box, drawings.specs[Number(box.dataset.chart)], options).catch((error) => {
    box.textContent = "This picture could not be drawn; the table below holds its figures.";
    console.error(error);
  });
}
