//! One key or several.

use bytes::Bytes;

/// A key, or an array or `Vec` of keys: what [`StreamCheck::expect_exactly_once`](super::StreamCheck::expect_exactly_once)
/// takes.
pub trait IntoKeys {
    /// The keys, as they stand in records.
    fn into_keys(self) -> Vec<Bytes>;
}

macro_rules! one_key {
    ($($key:ty),*) => {
        $(impl IntoKeys for $key {
            fn into_keys(self) -> Vec<Bytes> {
                let key: &[u8] = self.as_ref();
                vec![Bytes::copy_from_slice(key)]
            }
        })*
    };
}

one_key!(&str, String, &String, &[u8], Bytes, &Bytes);

impl<const N: usize> IntoKeys for &[u8; N] {
    fn into_keys(self) -> Vec<Bytes> {
        vec![Bytes::copy_from_slice(self)]
    }
}

impl<K: AsRef<[u8]>, const N: usize> IntoKeys for [K; N] {
    fn into_keys(self) -> Vec<Bytes> {
        copied(self)
    }
}

impl<K: AsRef<[u8]>> IntoKeys for Vec<K> {
    fn into_keys(self) -> Vec<Bytes> {
        copied(self)
    }
}

impl<K: AsRef<[u8]>> IntoKeys for &Vec<K> {
    fn into_keys(self) -> Vec<Bytes> {
        copied(self)
    }
}

/// The values' bytes in memory of their own.
pub(super) fn copied<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Vec<Bytes> {
    values.into_iter().map(|value| Bytes::copy_from_slice(value.as_ref())).collect()
}
