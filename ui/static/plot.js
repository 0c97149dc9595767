// Draws one plotly figure and reports clicks and box selections. Runs again on the same node whenever the data changes,
// so that zoom and hover survive an update. Only an id or the bounds of a box go back, never the points.

// The page's head has the browser fetch the script early (see ui/middleware.py); it runs when the first chart wants it.
const loadPlotly = (src) =>
  window.Plotly
    ? Promise.resolve()
    : (window.__isoquantPlotly ||= new Promise((resolve, reject) => {
        const script = document.createElement("script")
        script.src = src
        script.onload = resolve
        script.onerror = () => {
          window.__isoquantPlotly = null
          reject(new Error("The chart library did not load; reload the page."))
        }
        document.head.append(script)
      }))

// Light or dark is read from the page itself: the server learns of a change of theme one rerun late.
const isDark = (node) => {
  for (let n = node; n; n = n.parentElement) {
    const parts = getComputedStyle(n).backgroundColor.match(/[\d.]+/g)?.map(Number)
    if (parts && (parts.length < 4 || parts[3] > 0.5)) return 0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2] < 128
  }
  return false
}

// Colours are named by role in the figure ("@ink"); put in those of the theme on screen. Only keys that hold colours.
const paint = (value, palette, key = "") => {
  if (typeof value === "string") return /color$/i.test(key) && value[0] === "@" ? palette[value.slice(1)] ?? value : value
  if (Array.isArray(value)) {
    if (value.length && typeof value[0] !== "object" && !/color$/i.test(key)) return value
    return value.map((v) => paint(v, palette, key))
  }
  if (value && typeof value === "object") {
    if (value.bdata) return value
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, paint(v, palette, k)]))
  }
  return value
}

const wire = (plot, state) => {
  plot.on("plotly_click", (event) => {
    const id = event.points.find((p) => p.customdata)?.customdata
    if (id) state.send("click", { id: String(id), at: Date.now() })
  })
  plot.on("plotly_selected", (event) => {
    if (!event?.range) return
    const bounds = (range) => [...range].map(Number).sort((a, b) => a - b)
    state.send("box", { x: bounds(event.range.x), y: bounds(event.range.y) })
  })
  // Our own round ticks fit the whole range; a zoomed axis chooses its own.
  plot.on("plotly_relayout", (event) => {
    const change = {}
    for (const axis of ["xaxis", "yaxis"]) {
      if (!plot.layout[axis]?.tickvals) continue
      if (`${axis}.range[0]` in event) change[`${axis}.tickmode`] = "auto"
      if (`${axis}.autorange` in event) change[`${axis}.tickmode`] = "array"
    }
    if (Object.keys(change).length) window.Plotly.relayout(plot, change)
  })
  plot.on("plotly_deselect", () => state.send("box", null))
}

export default async function (component) {
  const { parentElement, data, setStateValue } = component
  const plot = parentElement.querySelector(".isoquant-plot")
  if (!plot) return
  plot.style.height = `${data.height}px`
  plot.setAttribute("role", "img")
  plot.setAttribute("aria-label", data.alt)
  const note = parentElement.querySelector(".isoquant-plot-note")
  try {
    await loadPlotly(data.src)
  } catch (error) {
    note.textContent = error.message
    return
  }
  const dark = isDark(plot)
  if (plot.__drawn === data.figure && plot.__dark === dark) return
  const state = (plot.__state ||= {})
  state.send = setStateValue
  const figure = paint(JSON.parse(data.figure), dark ? data.dark : data.light)
  // The same object every time: plotly takes a new function for a new configuration, and starts from nothing.
  state.svg ||= {
    name: "Download as SVG",
    icon: window.Plotly.Icons.disk,
    click: (node) => window.Plotly.downloadImage(node, { format: "svg", filename: state.filename }),
  }
  state.filename = data.config.toImageButtonOptions.filename
  const config = { responsive: true, ...data.config, modeBarButtonsToAdd: [state.svg] }
  await window.Plotly.react(plot, figure.data, figure.layout, config)
  plot.__drawn = data.figure
  plot.__dark = dark
  if (!plot.__wired) {
    plot.__wired = true
    wire(plot, state)
  }
}
