//! What a tensor is to a verb: a layout, and where it begins in its memory.

use candle_core::{DType, Tensor};

use super::CandleLayer;
use crate::{Axis, CacheLayout, ElementType, Error, KeyLayout, Result, Strides};

/// The layers at one end of a call, which lie alike.
pub(super) struct End<'a> {
    pub(super) layout: CacheLayout<'a>,
    pub(super) layers: Vec<(View<'a>, Option<View<'a>>)>,
}

impl<'a> End<'a> {
    /// The layers of an argument, with or without their values; `None` if there are no layers.
    pub(super) fn new(
        argument: &'static str,
        layers: &[CandleLayer<'a>],
        values: bool,
    ) -> Result<Option<Self>> {
        let views = layers.iter().enumerate().map(|(layer, given)| {
            let view = |part, tensor, layout: Option<KeyLayout<'a>>| match layout {
                Some(layout) => View::laid_out(argument, layer, part, tensor, layout),
                None => View::of_shape(argument, layer, part, tensor),
            };
            let keys = view("keys", given.keys, given.layout.map(|layout| layout.keys))?;
            let mismatch = |has: &str| Error::Argument {
                argument,
                problem: format!("layer {layer} has {has}"),
            };
            let place = given.layout.map(|layout| layout.values);
            match (given.values.filter(|_| values), place) {
                (None, Some(Some(_))) if values => Err(mismatch(
                    "no values, but its layout says where they lie: they would stay behind",
                )),
                (None, _) => Ok((keys, None)),
                (Some(_), Some(None)) => Err(mismatch(
                    "values, but its layout does not say where they lie",
                )),
                (Some(values), place) => Ok((keys, Some(view("values", values, place.flatten())?))),
            }
        });
        let layers: Vec<(View<'a>, Option<View<'a>>)> = views.collect::<Result<_>>()?;
        let Some((keys, _)) = layers.first() else {
            return Ok(None);
        };
        let values = layers.iter().find_map(|(_, values)| values.as_ref());
        let some = layers[0].1.is_some();
        for (layer, (layer_keys, layer_values)) in layers.iter().enumerate() {
            if layer_values.is_some() != some {
                let has = |values| if values { "values" } else { "no values" };
                return Err(Error::Argument {
                    argument,
                    problem: format!(
                        "layer {layer} has {}, those before it have {}",
                        has(!some),
                        has(some)
                    ),
                });
            }
            layer_keys.lies_as(keys)?;
            if let Some((first, other)) = values.zip(layer_values.as_ref()) {
                other.lies_as(first)?;
            }
        }
        let layout = CacheLayout {
            keys: keys.layout,
            values: values.map(|values| values.layout),
        };
        Ok(Some(End { layout, layers }))
    }

    pub(super) fn views(&self) -> impl Iterator<Item = &View<'a>> {
        let layers = self.layers.iter();
        layers.flat_map(|(keys, values)| [Some(keys), values.as_ref()].into_iter().flatten())
    }
}

/// A tensor of a call.
pub(super) struct View<'a> {
    pub(super) argument: &'static str,
    pub(super) layer: usize,
    pub(super) part: &'static str,
    pub(super) tensor: &'a Tensor,
    /// From its own first element on.
    pub(super) layout: KeyLayout<'a>,
    /// That element's place in its memory.
    pub(super) start: usize,
    /// Which memory: the same number for all tensors that share it.
    pub(super) storage: usize,
}

impl<'a> View<'a> {
    /// A tensor that lies as its shape and strides say.
    fn of_shape(
        argument: &'static str,
        layer: usize,
        part: &'static str,
        tensor: &'a Tensor,
    ) -> Result<Self> {
        let refuse = |problem: String| Error::Argument {
            argument,
            problem: format!("layer {layer}: {part} {problem}"),
        };
        let element = element(tensor).map_err(refuse)?;
        let axes = tensor.dims().iter().zip(tensor.stride());
        // An axis of one index takes no steps, so how long they would be is no difference.
        let axes = axes.map(|(&len, &stride)| Axis::new(len, if len > 1 { stride } else { 0 }));
        let (batch, heads, rows, dim) = match axes.collect::<Vec<_>>()[..] {
            [batch, heads, rows, dim] => (batch, heads, rows, dim),
            [heads, rows, dim] => (Axis::new(1, 0), heads, rows, dim),
            _ => {
                return Err(refuse(format!(
                    "are {:?}, not [batch, heads, seq, dim] or [heads, seq, dim]",
                    tensor.dims()
                )));
            }
        };
        // A cache that has no rows yet has no strides to speak of: candle's are 0.
        let (batch, heads) = if rows.len == 0 {
            let of = |axis: Axis, stride| Axis::new(axis.len, stride);
            (
                of(batch, heads.len.saturating_mul(dim.len)),
                of(heads, dim.len),
            )
        } else {
            (batch, heads)
        };
        let named = [
            ("sequences", batch),
            ("heads", heads),
            ("rows", rows),
            ("dimensions", dim),
        ];
        // Where there are no elements, none are in one place.
        let expanded = named
            .iter()
            .find(|(_, axis)| axis.stride == 0 && axis.len > 1 && tensor.elem_count() > 0);
        if let Some((name, axis)) = expanded {
            return Err(refuse(format!(
                "have all {} {name} in one place, as a tensor that has been expanded",
                axis.len
            )));
        }
        let (packs, pack) = if dim.stride > 1 {
            (dim, 1)
        } else {
            (Axis::new(1, 0), dim.len)
        };
        let layout = KeyLayout::strided(
            element,
            Strides {
                offset: 0,
                batch,
                blocks: Axis::new(1, 0),
                rows,
                heads,
                packs,
                pack,
            },
        );
        // Whether the memory is long enough is checked when it is there.
        Self::checked(argument, layer, part, tensor, layout, usize::MAX)
    }

    /// A tensor in whose elements, one behind the other, rows lie as `layout` says.
    fn laid_out(
        argument: &'static str,
        layer: usize,
        part: &'static str,
        tensor: &'a Tensor,
        layout: KeyLayout<'a>,
    ) -> Result<Self> {
        let refuse = |problem: String| Error::Argument {
            argument,
            problem: format!("layer {layer}: {part} {problem}"),
        };
        let element = element(tensor).map_err(refuse)?;
        if element != layout.element() {
            let problem = format!("are {element}, their layout is of {}", layout.element());
            return Err(refuse(problem));
        }
        if !tensor.is_contiguous() {
            return Err(refuse(format!(
                "are {:?} by strides {:?}, which a layout of one's own cannot describe; it is for contiguous tensors",
                tensor.dims(),
                tensor.stride()
            )));
        }
        Self::checked(argument, layer, part, tensor, layout, tensor.elem_count())
    }

    /// If `len` elements suffice.
    fn checked(
        argument: &'static str,
        layer: usize,
        part: &'static str,
        tensor: &'a Tensor,
        layout: KeyLayout<'a>,
        len: usize,
    ) -> Result<Self> {
        layout.check(len).map_err(|error| match error {
            Error::Layout(problem) => Error::Layout(format!("layer {layer}, {part}: {problem}")),
            other => other,
        })?;
        let (storage, placed) = tensor.storage_and_layout();
        Ok(View {
            argument,
            layer,
            part,
            tensor,
            layout,
            start: placed.start_offset(),
            storage: std::ptr::from_ref::<candle_core::Storage>(&storage).addr(),
        })
    }

    /// Every element that it may name, whatever its table says, from the start of the memory on.
    pub(super) fn placed(&self) -> KeyLayout<'static> {
        KeyLayout {
            table: None,
            ..self.layout
        }
        .with_offset(self.start)
    }

    /// Whether the two are one tensor seen through block tables, and alike but for these: whether a copy's rows are apart
    /// is then for the verb to see, which knows them.
    pub(super) fn other_blocks_of(&self, other: &View<'_>) -> bool {
        self.argument != other.argument
            && self.layout.table.is_some()
            && (self.layer, self.part) == (other.layer, other.part)
            && (self.storage, self.start) == (other.storage, other.start)
            && self.layout.same_lattice(&other.layout)
    }

    /// Whether it has no elements, and no part in the call but its shape.
    pub(super) fn is_empty(&self) -> bool {
        self.tensor.elem_count() == 0
    }

    /// The two of them, for an error that names the argument of the other.
    pub(super) fn and(&self, other: &View<'_>) -> String {
        let from = if self.argument == other.argument {
            String::new()
        } else {
            format!(" of `{}`", self.argument)
        };
        format!(
            "layer {}'s {} and layer {}'s {}{from}",
            other.layer, other.part, self.layer, self.part
        )
    }

    fn lies_as(&self, first: &View<'_>) -> Result<()> {
        if self.layout == first.layout {
            return Ok(());
        }
        let lies = |view: &View<'_>| {
            let (tensor, element) = (view.tensor, view.layout.element());
            format!(
                "{element} {:?} by strides {:?}",
                tensor.dims(),
                tensor.stride()
            )
        };
        let (here, there) = (lies(self), lies(first));
        // Tensors that look alike have been given layouts that are not, or tables.
        let differs = if here == there {
            format!(
                "its layout, or block table, is not that of layer {}",
                first.layer
            )
        } else {
            format!("{here}, but {there} in layer {}", first.layer)
        };
        Err(Error::Layout(format!(
            "layer {}, {}: {differs}; layers that lie otherwise take a call of their own (`Rotations::select`)",
            self.layer, self.part
        )))
    }
}

/// The type of a tensor's numbers, if there are kernels for it.
fn element(tensor: &Tensor) -> Result<ElementType, String> {
    match tensor.dtype() {
        DType::F32 => Ok(ElementType::F32),
        DType::F16 => Ok(ElementType::F16),
        DType::BF16 => Ok(ElementType::BF16),
        other => Err(format!("are {}, not f32, f16 or bf16", other.as_str())),
    }
}
