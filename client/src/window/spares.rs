//! Buffers of batches that were answered, for those that are begun next: a producer of many streams would otherwise
//! allocate one for each batch and give another one back, at a time when neither is in the processor's caches.

use bytes::{Bytes, BytesMut};

/// Larger ones are left to the allocator: they come seldom, for what is in them.
const SPARE_BYTES_MAX: usize = 16 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Spares {
    buffers: Vec<BytesMut>,
    bytes: usize,
    bytes_max: usize,
}

impl Spares {
    /// For a window of so many bytes: an eighth of it.
    pub(super) const fn new(window_bytes: usize) -> Self {
        Self { buffers: Vec::new(), bytes: 0, bytes_max: window_bytes / 8 }
    }

    /// Takes in a batch's buffer, if nobody else has a part of it.
    pub(super) fn put(&mut self, batch: Bytes) {
        if self.bytes >= self.bytes_max {
            return;
        }
        if let Ok(mut buffer) = batch.try_into_mut() {
            buffer.clear();
            if buffer.capacity() <= SPARE_BYTES_MAX {
                self.bytes += buffer.capacity();
                self.buffers.push(buffer);
            }
        }
    }

    /// One with room for so many bytes, if the next one has.
    pub(super) fn take(&mut self, bytes: usize) -> Option<BytesMut> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.capacity();
        Some(buffer).filter(|buffer| buffer.capacity() >= bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_all_its_room_if_nobody_else_has_a_part_of_it() {
        let mut spares = Spares::new(1 << 20);
        let mut buffer = BytesMut::with_capacity(5_000);
        buffer.extend_from_slice(&[7; 4_000]);
        let batch = buffer.split().freeze();
        spares.put(batch.clone());
        assert!(spares.take(1).is_none(), "it is still being sent");
        drop(buffer);
        spares.put(batch);
        let spare = spares.take(5_000).unwrap();
        assert!(spare.is_empty() && spare.capacity() >= 5_000);
        assert_eq!(spares.bytes, 0);
    }

    #[test]
    fn not_more_is_kept_than_an_eighth_of_the_window_and_nothing_large() {
        let mut spares = Spares::new(80_000);
        let put = |spares: &mut Spares, bytes: usize| spares.put(BytesMut::zeroed(bytes).freeze());
        put(&mut spares, 100_000);
        assert_eq!(spares.bytes, 0);
        (0..10).for_each(|_| put(&mut spares, 4_000));
        assert!((10_000..14_000).contains(&spares.bytes), "{}", spares.bytes);
        assert!(spares.take(5_000).is_none(), "too small");
    }
}
