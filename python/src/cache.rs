//! A cache as Python hands it over: a tensor for each layer's keys, and one for its values, all of one shape.

use pie_rope::{Axis, CacheLayout, ElementType, KeyLayout, Strides};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::call::Call;
use crate::dlpack::{Borrow, Borrowed, Device, device};

/// An argument: the keys, or the values, of every layer, and the order of their axes.
pub(crate) struct Part<'a, 'py> {
    name: &'static str,
    given: &'a Bound<'py, PyAny>,
    layout: &'a str,
}

impl<'a, 'py> Part<'a, 'py> {
    pub(crate) fn new(name: &'static str, given: &'a Bound<'py, PyAny>, layout: &'a str) -> Self {
        Part {
            name,
            given,
            layout,
        }
    }
}

/// Keys and values of every layer, and the block table that they are seen through.
pub(crate) struct Cache<'py> {
    keys: Tensors<'py>,
    values: Option<Tensors<'py>>,
    table: Option<Vec<u32>>,
}

impl<'py> Cache<'py> {
    pub(crate) fn borrow(
        call: &Call<'py>,
        keys: Part<'_, 'py>,
        values: Option<Part<'_, 'py>>,
        table: Option<Vec<u32>>,
        writes: bool,
    ) -> PyResult<Self> {
        let borrow = |part| Tensors::borrow(part, writes, &call.borrow);
        let keys = borrow(keys)?;
        let values = values.map(borrow).transpose()?;
        if let Some(values) = &values {
            let refuse = |problem: String| {
                let text = format!("{}: {problem}", values.name);
                Err(PyValueError::new_err(text))
            };
            let (ours, theirs) = (values.layers.len(), keys.layers.len());
            if ours != theirs {
                return refuse(format!("{ours} layers, but {}: {theirs}", keys.name));
            }
            let (ours, theirs) = (values.layout.batch(), keys.layout.batch());
            if ours != theirs {
                return refuse(format!("a batch of {ours}, but {}: of {theirs}", keys.name));
            }
        }
        Ok(Cache {
            keys,
            values,
            table,
        })
    }

    pub(crate) fn parts(&self) -> Vec<&Tensors<'py>> {
        let values = self.values.as_ref();
        [Some(&self.keys), values].into_iter().flatten().collect()
    }

    pub(crate) fn layout(&self) -> CacheLayout<'_> {
        let values = self.values.as_ref().map(|values| values.layout);
        let layout = CacheLayout {
            keys: self.keys.layout,
            values,
        };
        match &self.table {
            Some(table) => layout.with_table(table),
            None => layout,
        }
    }

    /// Keys and values, address and length in elements, of every layer; null if there are no values.
    pub(crate) fn layers(&self) -> impl Iterator<Item = [(usize, usize); 2]> {
        let values = self.values.as_ref();
        let place = |tensor: &Borrowed<'_>| (tensor.address, tensor.reach());
        self.keys
            .layers
            .iter()
            .enumerate()
            .map(move |(layer, keys)| {
                let values = values.map(|values| place(&values.layers[layer]));
                [place(keys), values.unwrap_or_default()]
            })
    }
}

/// The keys, or the values, of every layer.
pub(crate) struct Tensors<'py> {
    name: &'static str,
    layers: Vec<Borrowed<'py>>,
    pub(crate) layout: KeyLayout<'static>,
}

impl<'py> Tensors<'py> {
    /// Borrows tensors that lie as their layout's name says. A layer alone may be given without a list.
    fn borrow(part: Part<'_, 'py>, writes: bool, how: &Borrow<'py>) -> PyResult<Self> {
        let Part {
            name,
            given,
            layout,
        } = part;
        let given = layers(given)?;
        let one = |(index, tensor)| {
            let name = layer_name(name, index, given.len());
            let borrowed = Borrowed::new(&name, tensor, writes, how)?;
            let element = borrowed.element(&name)?;
            PyResult::Ok((name, borrowed, element))
        };
        let mut tensors = given.iter().enumerate().map(one);
        let Some((first_name, first, element)) = tensors.next().transpose()? else {
            return Err(PyValueError::new_err(format!(
                "{name}: there are no layers"
            )));
        };
        let described = describe(&first_name, &first, element, layout)?;
        let mut layers = vec![first];
        for tensor in tensors {
            let (name, tensor, its_element) = tensor?;
            let first = &layers[0];
            let alike = (its_element, tensor.device, &tensor.shape)
                == (element, first.device, &first.shape)
                && describe(&name, &tensor, its_element, layout)? == described;
            if !alike {
                return Err(PyValueError::new_err(format!(
                    "{name}: it differs from {first_name} in type, device, shape or strides, and a call is for layers \
                     that lie alike: {its_element} {:?} by {:?}, {element} {:?} by {:?}",
                    tensor.shape, tensor.strides, first.shape, first.strides
                )));
            }
            layers.push(tensor);
        }
        Ok(Tensors {
            name,
            layers,
            layout: described,
        })
    }

    /// Address and length in elements of every layer.
    pub(crate) fn buffers(&self) -> impl ExactSizeIterator<Item = (usize, usize)> {
        self.layers
            .iter()
            .map(|tensor| (tensor.address, tensor.reach()))
    }
}

/// How messages call a layer of an argument.
fn layer_name(name: &str, index: usize, layers: usize) -> String {
    if layers > 1 {
        format!("{name}[{index}]")
    } else {
        name.to_owned()
    }
}

/// The tensors of a list or tuple, or a tensor by itself.
pub(crate) fn layers<'py>(given: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
    if given.is_instance_of::<PyList>() || given.is_instance_of::<PyTuple>() {
        given.try_iter()?.collect()
    } else {
        Ok(vec![given.clone()])
    }
}

/// The device of the first layer, before anything is borrowed.
pub(crate) fn device_of(name: &str, given: &Bound<'_, PyAny>) -> PyResult<Device> {
    match layers(given)?.first() {
        Some(tensor) => device(name, tensor),
        None => Err(PyValueError::new_err(format!(
            "{name}: there are no layers"
        ))),
    }
}

/// A tensor as a layout, by the name of its axes' order.
fn describe(
    name: &str,
    tensor: &Borrowed<'_>,
    element: ElementType,
    layout: &str,
) -> PyResult<KeyLayout<'static>> {
    let axes: Vec<Axis> = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .map(|(&len, &stride)| Axis::new(len, stride))
        .collect();
    let one = Axis::new(1, 0);
    let [batch, blocks, rows, heads, packs, dim] = match (layout, axes[..].as_ref()) {
        ("bhsd", &[b, h, s, d]) => [b, one, s, h, one, d],
        ("bshd", &[b, s, h, d]) => [b, one, s, h, one, d],
        // A slot is a page of one row.
        ("slots", &[s, h, d]) => [one, s, one, h, one, d],
        ("nhd", &[n, s, h, d]) => [one, n, s, h, one, d],
        ("hnd", &[n, h, s, d]) => [one, n, s, h, one, d],
        ("x_packed", &[n, h, p, s, x]) => [one, n, s, h, p, x],
        ("x_packed", &[n, h, d, s]) => [one, n, s, h, d, Axis::new(1, 1)],
        ("bhsd" | "bshd" | "slots" | "nhd" | "hnd" | "x_packed", _) => {
            return Err(PyValueError::new_err(format!(
                "{name}: layout `{layout}` is for tensors {}; this one is {:?}",
                shape_of(layout),
                tensor.shape
            )));
        }
        (other, _) => {
            return Err(PyValueError::new_err(format!(
                "layout: there is no `{other}`, only `bhsd`, `bshd`, `slots`, `nhd`, `hnd` and `x_packed`"
            )));
        }
    };
    let (packs, pack) = if dim.stride == 1 || dim.len <= 1 {
        (packs, dim.len)
    } else if packs.len == 1 {
        // Dimensions that lie apart are packs of one.
        (dim, 1)
    } else {
        return Err(PyValueError::new_err(format!(
            "{name}: the last axis of an x-packed tensor must be contiguous"
        )));
    };
    Ok(KeyLayout::strided(
        element,
        Strides {
            offset: 0,
            batch,
            blocks,
            rows,
            heads,
            packs,
            pack,
        },
    ))
}

fn shape_of(layout: &str) -> &'static str {
    match layout {
        "bhsd" => "[batch, heads, seq, dim]",
        "bshd" => "[batch, seq, heads, dim]",
        "slots" => "[slots, heads, dim]",
        "nhd" => "[blocks, block, heads, dim]",
        "hnd" => "[blocks, heads, block, dim]",
        _ => "[blocks, heads, dim / x, block, x], or [blocks, heads, dim, block]",
    }
}

/// Refuses tensors of which two share an element, `written` among themselves and with those `read`. Interleaved views
/// of one allocation share none. A layer that is copied inside itself may be in both lists, at equal places: the verb
/// checks it.
pub(crate) fn check_apart(written: &[&Tensors<'_>], read: &[&Tensors<'_>]) -> PyResult<()> {
    let all = |tensors: &[&Tensors<'_>], writes| {
        let mut views = Vec::new();
        for (part, tensors) in tensors.iter().enumerate() {
            for (layer, (address, len)) in tensors.buffers().enumerate() {
                let end = address + len * tensors.layout.element().size();
                let view = View {
                    address,
                    end,
                    layout: tensors.layout,
                    name: layer_name(tensors.name, layer, tensors.layers.len()),
                    place: (part, layer),
                    writes,
                };
                views.push(view);
            }
        }
        views
    };
    let mut views = all(written, true);
    views.extend(all(read, false));
    views.retain(|view| view.address < view.end);
    views.sort_by_key(|view| view.address);
    for (index, first) in views.iter().enumerate() {
        for second in views[index + 1..]
            .iter()
            .take_while(|second| second.address < first.end)
        {
            let same = first.address == second.address
                && first.place == second.place
                && first.writes != second.writes;
            let harmless = !first.writes && !second.writes || same;
            if !harmless && !first.is_beside(second) {
                let (first, second) = (&first.name, &second.name);
                return Err(PyValueError::new_err(format!(
                    "{first} and {second} share memory"
                )));
            }
        }
    }
    Ok(())
}

/// A tensor among others.
struct View {
    address: usize,
    end: usize,
    layout: KeyLayout<'static>,
    name: String,
    /// Which of the arguments it is in, and which layer it is there.
    place: (usize, usize),
    writes: bool,
}

impl View {
    /// Whether `second`, which begins inside this view, has no element of it.
    fn is_beside(&self, second: &View) -> bool {
        let size = self.layout.element().size();
        let gap = second.address - self.address;
        self.layout.element() == second.layout.element()
            && gap.is_multiple_of(size)
            && self
                .layout
                .is_disjoint(&second.layout.with_offset(gap / size))
    }
}
