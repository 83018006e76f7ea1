//! Values by number. A number is never used twice, so one that Python still holds cannot name a newer value.

/// Index in the low 32 bits, generation in the 29 above: three bits stay free for `epoll`'s tag.
pub type Id = u64;

const GENERATIONS: u32 = (1 << 29) - 1;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A slab whose keys include the generation of the slot.
pub struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

fn split(id: Id) -> (usize, u32) {
    ((id & 0xffff_ffff) as usize, (id >> 32) as u32)
}

fn join(index: u32, generation: u32) -> Id {
    (Id::from(generation) << 32) | Id::from(index)
}

impl<T> Arena<T> {
    /// Keep `value`; its number.
    pub fn insert(&mut self, value: T) -> Id {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation % GENERATIONS + 1;
        slot.value = Some(value);
        join(index, slot.generation)
    }

    pub fn get(&self, id: Id) -> Option<&T> {
        let (index, generation) = split(id);
        self.slots.get(index).filter(|slot| slot.generation == generation)?.value.as_ref()
    }

    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let (index, generation) = split(id);
        self.slots.get_mut(index).filter(|slot| slot.generation == generation)?.value.as_mut()
    }

    pub fn remove(&mut self, id: Id) -> Option<T> {
        let (index, generation) = split(id);
        let value = self.slots.get_mut(index).filter(|slot| slot.generation == generation)?.value.take();
        if value.is_some() {
            self.free.push(index as u32);
        }
        value
    }

    pub fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let value = slot.value.as_ref()?;
            Some((join(index as u32, slot.generation), value))
        })
    }

    pub fn ids(&self) -> Vec<Id> {
        self.iter().map(|(id, _)| id).collect()
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_used_twice() {
        let mut arena = Arena::default();
        let first = arena.insert("a");
        assert_eq!(arena.remove(first), Some("a"));
        let second = arena.insert("b");
        assert_ne!(first, second);
        assert_eq!((arena.get(first), arena.get(second)), (None, Some(&"b")));
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.len(), 1);
        assert_eq!(arena.iter().collect::<Vec<_>>(), [(second, &"b")]);
    }
}
